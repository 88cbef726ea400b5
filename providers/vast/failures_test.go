package vast_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/providers/api"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
	"headrace/router/endpoint"
)

// TestFailures goes through the failure modes that are known of Vast.ai, by their number in its list.
func TestFailures(t *testing.T) {
	plain := fakevast.InstanceConfig{}
	keyed := fakevast.InstanceConfig{APIKey: "own-key-of-the-instance"}
	one := func(t *testing.T, cfg fakevast.Config, change func(*vast.Options), ic fakevast.InstanceConfig) (*rig, *fakevast.Instance) {
		t.Helper()
		r := start(t, cfg, change, ic)
		i := r.cloud.Instances()[0]
		if ic.Boot == nil && ic.Hazards == 0 {
			r.state(i, endpoint.Ready, "")
		}
		return r, i
	}

	for name, tc := range map[string]struct {
		kind fakevast.TroubleKind
		says string
	}{
		"retired list":    {fakevast.Deprecated410, "retired"},
		"reset":           {fakevast.Down, ""},
		"500":             {fakevast.Status500, "500"},
		"502 page":        {fakevast.HTML502, "502"},
		"empty body":      {fakevast.EmptyBody, "no JSON"},
		"cut JSON":        {fakevast.MalformedJSON, "no JSON"},
		"success false":   {fakevast.Status200Failure, "Something went wrong"},
		"too many":        {fakevast.TooMany, "429"},
		"key refused 404": {fakevast.AuthError, "key is refused"},
		"other object":    {fakevast.ErrorMsg, "no instances in it"},
	} {
		t.Run("vast_7.1_list_error_is_no_empty_fleet/"+name, func(t *testing.T) {
			t.Parallel()
			r, i := one(t, fakevast.Config{}, nil, plain)
			good := r.p.Status().LastGood
			r.cloud.Outage(tc.kind, true)
			s := r.status("a failing poll", func() bool { s := r.p.Status(); return s.Failing > 0 })
			if !strings.Contains(s.LastError, tc.says) {
				t.Errorf("the error %q does not say %q", s.LastError, tc.says)
			}
			if _, eps, _ := r.fleet(); len(eps) != 1 || eps[0].State != endpoint.Ready {
				t.Errorf("the fleet is %s", show(eps))
			}
			if s.LastGood.Before(good) || s.LastGood.IsZero() {
				t.Errorf("the last good list was at %s, before %s", s.LastGood, good)
			}
			r.cloud.SetTroubles()
			r.status("a good poll", func() bool { s := r.p.Status(); return s.Failing == 0 && s.LastError == "" })
			r.state(i, endpoint.Ready, "")
		})
	}

	t.Run("vast_7.1_page_that_fails_in_the_middle", func(t *testing.T) {
		t.Parallel()
		c, second := fleetOf(t, fakevast.Config{}, 30), &secondPages{}
		r := attach(t, c, func(o *vast.Options) { o.Transport = second })
		r.until("30 instances", func(eps []endpoint.Endpoint) bool { return len(eps) == 30 })
		second.on.Store(true)
		r.status("a failing poll", func() bool { return r.p.Status().Failing > 0 })
		if _, eps, _ := r.fleet(); len(eps) != 30 {
			t.Errorf("after a list that broke off %d of 30 instances are left", len(eps))
		}
	})

	for name, ic := range map[string]fakevast.InstanceConfig{"plain": plain, "portal": {Template: fakevast.Portal}, "portal that says 200": {Template: fakevast.Portal, Portal: fakevast.PortalConfig{Placeholder200: true}}} {
		t.Run("vast_7.2_running_but_nothing_serves/"+name, func(t *testing.T) {
			t.Parallel()
			r, i := one(t, fakevast.Config{}, nil, ic)
			i.ModelDead(true)
			r.p.Nudge(id(i))
			ep := r.state(i, endpoint.Starting, "running, but")
			if len(ep.Served) == 0 {
				t.Error("what it served is forgotten, so that its model would be unknown instead of away")
			}
			i.ModelDead(false)
			r.state(i, endpoint.Ready, "")
		})
	}

	for name, h := range map[string]fakevast.Hazard{"null": fakevast.PortsNull, "empty list": fakevast.PortsEmptyList, "list of numbers": fakevast.PortsList} {
		t.Run("vast_7.3_ports_not_published/"+name, func(t *testing.T) {
			t.Parallel()
			r, i := one(t, fakevast.Config{}, nil, fakevast.InstanceConfig{Hazards: h})
			r.state(i, endpoint.Starting, "ports")
			i.SetHazards(0)
			r.state(i, endpoint.Ready, "")
		})
	}
	t.Run("vast_7.3_address_not_published", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{TimeScale: 1000}, nil, fakevast.InstanceConfig{Boot: &fakevast.Boot{Ports: 300 * time.Second, Pull: time.Second}})
		r.state(i, endpoint.Starting, "address yet")
		r.state(i, endpoint.Ready, "")
	})

	t.Run("vast_7.4_port_never_reachable", func(t *testing.T) {
		t.Parallel()
		r := start(t, fakevast.Config{}, func(o *vast.Options) { o.ProbeTimeout = 100 * time.Millisecond })
		i := r.cloud.AddInstance(fakevast.InstanceConfig{Machine: 77})
		i.Unreachable(true)
		if ep := r.state(i, endpoint.Starting, "does not answer within 0.1 s"); ep.Hardware.Machine != "vast:machine:77" {
			t.Errorf("its machine, by which such failures are counted, is %q", ep.Hardware.Machine)
		}
		i.Unreachable(false)
		r.state(i, endpoint.Ready, "")
	})

	t.Run("vast_7.5_dead_on_arrival", func(t *testing.T) {
		t.Parallel()
		r := start(t, fakevast.Config{}, nil)
		i := r.cloud.AddInstance(fakevast.InstanceConfig{})
		i.BootFails("Error response from daemon: OCI runtime create failed: unresolvable CDI devices")
		i.Restart(0, "")
		r.state(i, endpoint.Gone, "OCI runtime create failed")
	})
	t.Run("vast_7.5_stuck_message_is_no_proof", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{}, nil, plain)
		i.Stall("a1b2c3d4e5f6: Downloading 3.1GB/12GB")
		r.state(i, endpoint.Starting, "Downloading 3.1GB")
		r.never(i, endpoint.Gone, 5)
	})

	t.Run("vast_7.6_start_that_waits_for_its_GPU", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{}, nil, plain)
		i.Stop()
		r.state(i, endpoint.Preempted, "stopped")
		i.SetStart(fakevast.StartUnavailable)
		if i.Start() {
			t.Fatal("the fake started it")
		}
		r.state(i, endpoint.Preempted, "waiting for its GPU")
	})

	for name, o := range map[string]fakevast.Outbid{"exited stopped": fakevast.ExitedStopped, "stopped stopped": fakevast.StoppedStopped, "exited queued": fakevast.ExitedQueued} {
		t.Run("vast_7.7_outbid/"+name, func(t *testing.T) {
			t.Parallel()
			r, i := one(t, fakevast.Config{}, nil, keyed)
			before := r.state(i, endpoint.Ready, "")
			i.Outbid(o)
			r.p.Nudge(id(i))
			out := r.state(i, endpoint.Preempted, "outbid")
			if out.APIKey != "" {
				t.Error("the key stays with a host that is not there")
			}
			i.Resume()
			after := r.state(i, endpoint.Ready, "")
			if after.BaseURL == before.BaseURL {
				t.Errorf("it is back at %s, but the fake moved it", after.BaseURL)
			}
			if after.BaseURL != i.URL()+"/v1" {
				t.Errorf("it is at %s, and is looked for at %s", i.URL(), after.BaseURL)
			}
		})
	}

	t.Run("vast_7.8_address_changes", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{}, nil, plain)
		i.Restart(0, "127.0.0.9")
		r.until("the new address", func(eps []endpoint.Endpoint) bool {
			return eps[0].ID == id(i) && eps[0].State == endpoint.Ready && strings.HasPrefix(eps[0].BaseURL, "http://127.0.0.9:")
		})
	})

	t.Run("vast_7.9_host_offline_and_back", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{}, func(o *vast.Options) { o.ProbeTimeout = 100 * time.Millisecond }, plain)
		before := r.state(i, endpoint.Ready, "")
		i.HostOffline()
		r.state(i, endpoint.Preempted, "lost contact")
		asked := len(i.Host().Requests())
		i.HostOnline()
		after := r.state(i, endpoint.Ready, "")
		if after.ID != before.ID {
			t.Errorf("%s is back as %s", before.ID, after.ID)
		}
		if len(i.Host().Requests()) == asked {
			t.Error("it was taken back without being asked who it is")
		}
	})

	t.Run("vast_7.10_container_killed", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{}, nil, plain)
		i.Died()
		r.state(i, endpoint.Preempted, "container died")
	})

	t.Run("vast_7.11_machine_named", func(t *testing.T) {
		t.Parallel()
		r := start(t, fakevast.Config{}, nil,
			fakevast.InstanceConfig{Machine: 9, HostOwner: 3}, fakevast.InstanceConfig{Machine: 9, HostOwner: 3}, fakevast.InstanceConfig{Machine: 10, HostOwner: 3})
		eps := r.until("three", func(eps []endpoint.Endpoint) bool { return len(eps) == 3 })
		if a, b, c := eps[0].Hardware, eps[1].Hardware, eps[2].Hardware; a.Machine != b.Machine || a.Machine == c.Machine || a.Host != c.Host || a.Host == "" {
			t.Errorf("machines and owners: %+v %+v %+v", a, b, c)
		}
	})

	t.Run("vast_7.12_no_storm_of_reads_by_id", func(t *testing.T) {
		t.Parallel()
		c := fleetOf(t, fakevast.Config{}, 40)
		for _, i := range c.Instances() {
			i.SetHazards(fakevast.PortsNull)
		}
		r := attach(t, c, nil)
		r.status("ten polls", func() bool { return r.p.Status().Polls >= 10 })
		s, polls := c.Stats(), r.p.Status().Polls
		if by := s.Calls["GET /api/v0/instances/{id}/"]; by == 0 || int64(by) > 5*(polls+1) {
			t.Errorf("%d reads by id in %d polls of 40 instances without ports", by, polls)
		}
	})
	t.Run("vast_7.12_intervals_kept", func(t *testing.T) {
		t.Parallel()
		c := fleetOf(t, fakevast.Config{RateLimits: true, RateScale: 10}, 60)
		r := attach(t, c, func(o *vast.Options) { o.Pace = 1.0 / 10 })
		r.until("all", func(eps []endpoint.Endpoint) bool { return len(eps) == 60 })
		for range 2 {
			for _, i := range c.Instances() {
				r.p.Nudge(id(i))
			}
			polls := r.p.Status().Polls
			r.status("two more polls", func() bool { return r.p.Status().Polls >= polls+2 })
		}
		if s := c.Stats(); s.TooSoon > 0 {
			t.Errorf("%d calls came too soon: %v", s.TooSoon, s.Calls)
		}
	})
	for name, body := range map[string]fakevast.RateBody{"text": fakevast.RateText, "threshold": fakevast.RateThreshold, "detail": fakevast.RateDetail, "code": fakevast.RateCode} {
		t.Run("vast_7.12_429_without_Retry-After/"+name, func(t *testing.T) {
			t.Parallel()
			r := start(t, fakevast.Config{RateBody: body}, nil, plain)
			i := r.cloud.Instances()[0]
			r.cloud.SetTroubles(fakevast.Trouble{Kind: fakevast.TooMany, Times: 1})
			r.state(i, endpoint.Ready, "")
			r.status("a poll behind the 429", func() bool {
				for _, c := range r.p.Status().Calls {
					if c.Throttled == 1 && c.Calls > 1 {
						return true
					}
				}
				return false
			})
		})
	}

	t.Run("vast_7.13_interruptible_or_not", func(t *testing.T) {
		t.Parallel()
		r := start(t, fakevast.Config{}, nil, fakevast.InstanceConfig{IsBid: true}, fakevast.InstanceConfig{})
		eps := r.until("two", func(eps []endpoint.Endpoint) bool { return len(eps) == 2 })
		if eps[0].Tenure != endpoint.Interruptible || eps[1].Tenure != endpoint.OnDemand {
			t.Errorf("a bid is %s, the other %s", eps[0].Tenure, eps[1].Tenure)
		}
	})

	t.Run("vast_7.14_no_credit_stops_all", func(t *testing.T) {
		t.Parallel()
		r := start(t, fakevast.Config{}, nil, plain, plain, plain)
		is := r.cloud.Instances()
		for _, i := range is {
			r.state(i, endpoint.Ready, "")
		}
		for _, i := range is {
			i.Stop()
		}
		for _, i := range is {
			r.state(i, endpoint.Preempted, "out of credit")
		}
		for call := range r.cloud.Stats().Calls {
			if !strings.HasPrefix(call, "GET ") {
				t.Errorf("the account was changed: %s", call)
			}
		}
	})

	t.Run("vast_7.15_told_to_stop", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{TimeScale: 1000, EngineScale: -1, StopTakes: 100 * time.Hour}, nil, plain)
		before := time.Now()
		i.Stop()
		if ep := r.state(i, endpoint.Draining, "being stopped"); ep.Until.Before(before) || ep.Until.After(time.Now()) {
			t.Errorf("it was told to stop after %s, and is said to end at %s", before, ep.Until)
		}
	})

	t.Run("vast_7.15_contract_ends", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{}, nil, plain)
		end := time.Now().Add(9 * time.Minute)
		i.Update(func(c *fakevast.InstanceConfig) { c.EndDate = end })
		if ep := r.state(i, endpoint.Draining, "contract ends at"); ep.Until.Sub(end).Abs() > time.Second {
			t.Errorf("it ends at %s and not %s", ep.Until, end)
		}
	})

	t.Run("its price goes above the limit, and comes back", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{}, func(o *vast.Options) { o.MaxUSDPerHour = 0.5 }, plain)
		i.SetPrice(0.7)
		if ep := r.state(i, endpoint.Draining, "max_usd_per_hour is $0.5"); ep.Price.USDPerHour < 0.7 {
			t.Errorf("priced at %v", ep.Price.USDPerHour)
		}
		i.SetPrice(0.3)
		r.state(i, endpoint.Ready, "")
	})

	for name, h := range map[string]fakevast.Hazard{
		"address with line end": fakevast.IPNewline, "IPv6 twin": fakevast.IPv6Twin, "by id as a list": fakevast.ByIDArray | fakevast.ByIDPortsList,
		"integers": fakevast.IntFloats, "fractions": fakevast.FloatInts, "numbers in quotes": fakevast.StringNumbers, "null figures": fakevast.NullUtil,
		"stale figures": fakevast.StaleUtil, "unknown fields": fakevast.ExtraFields, "null label": fakevast.NullLabel,
	} {
		t.Run("vast_7.16_odd_shapes/"+name, func(t *testing.T) {
			t.Parallel()
			r := start(t, fakevast.Config{}, nil, fakevast.InstanceConfig{Hazards: h})
			ep := r.state(r.cloud.Instances()[0], endpoint.Ready, "")
			if ep.Price.USDPerHour < 0.4 || ep.Hardware.GPUCount != 1 || ep.Hardware.Machine == "" {
				t.Errorf("read as %+v %+v", ep.Price, ep.Hardware)
			}
		})
	}
	t.Run("vast_7.16_odd_shapes/unknown state", func(t *testing.T) {
		t.Parallel()
		r := start(t, fakevast.Config{}, nil, fakevast.InstanceConfig{Hazards: fakevast.NewStates})
		i := r.cloud.Instances()[0]
		r.state(i, endpoint.Ready, "")
		i.Stall("x")
		r.state(i, endpoint.Starting, "restarting")
	})
	t.Run("vast_7.16_odd_shapes/null list", func(t *testing.T) {
		t.Parallel()
		r := start(t, fakevast.Config{Hazards: fakevast.NullInstances}, nil)
		r.until("an empty fleet", func(eps []endpoint.Endpoint) bool { return len(eps) == 0 })
	})

	for name, h := range map[string]fakevast.Hazard{"list only": fakevast.ByIDPortsList, "by id only": fakevast.ListPortsNull, "IPv6 only": fakevast.IPv6Only} {
		t.Run("vast_7.17_port_found/"+name, func(t *testing.T) {
			t.Parallel()
			r := start(t, fakevast.Config{}, nil, fakevast.InstanceConfig{Hazards: h, ContainerPort: 9123, NoPortInEnv: true})
			i := r.cloud.Instances()[0]
			if ep := r.state(i, endpoint.Ready, ""); ep.BaseURL != i.URL()+"/v1" {
				t.Errorf("it is at %s, and is looked for at %s", i.URL(), ep.BaseURL)
			}
			if by := r.cloud.Stats().Calls["GET /api/v0/instances/{id}/"]; (by > 0) != (h == fakevast.ListPortsNull) {
				t.Errorf("%d reads by id", by)
			}
		})
	}

	t.Run("vast_7.19_slow_boot_is_waited_for", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{TimeScale: 10000}, nil, fakevast.InstanceConfig{Boot: &fakevast.Boot{Pull: 25 * time.Minute, Model: 10 * time.Minute}})
		r.state(i, endpoint.Starting, "")
		r.state(i, endpoint.Ready, "")
	})

	t.Run("vast_7.20_looks_at_the_first_failure", func(t *testing.T) {
		t.Parallel()
		r, i := one(t, fakevast.Config{}, func(o *vast.Options) { o.Poll = time.Hour }, plain)
		i.Outbid(fakevast.ExitedStopped)
		r.p.Nudge(id(i))
		r.state(i, endpoint.Preempted, "")
	})
	t.Run("vast_7.20_looks_at_one_of_many", func(t *testing.T) {
		t.Parallel()
		c, second := fleetOf(t, fakevast.Config{}, 60), &secondPages{}
		r := attach(t, c, func(o *vast.Options) { o.Poll, o.Transport = time.Hour, second })
		is := c.Instances()
		r.state(is[33], endpoint.Ready, "")
		second.on.Store(true) // the whole list is out of reach
		is[33].Outbid(fakevast.ExitedStopped)
		r.p.Nudge(id(is[33]))
		r.state(is[33], endpoint.Preempted, "")
	})
}

// status waits until ok holds, looking after each call to the fake.
func (r *rig) status(what string, ok func() bool) (s api.Status) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	for !ok() {
		n := calls(r.cloud.Stats())
		// The answer is taken in a moment after the call is booked: a call more, or that moment.
		short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
		err := r.cloud.Wait(short, func(s fakevast.Stats) bool { return calls(s) > n })
		stop()
		if err != nil && ctx.Err() != nil {
			r.t.Fatalf("waited in vain for %s: %+v", what, r.p.Status())
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			r.t.Fatal(err)
		}
	}
	return r.p.Status()
}

func calls(s fakevast.Stats) (n int) {
	for _, c := range s.Calls {
		n += c
	}
	return n
}

// fleetOf is a cloud with n instances.
func fleetOf(t *testing.T, cfg fakevast.Config, n int) *fakevast.Cloud {
	t.Helper()
	c, err := fakevast.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	for range n {
		c.AddInstance(fakevast.InstanceConfig{})
	}
	return c
}

// secondPages answers 500 for every page of a list but the first, while on.
type secondPages struct{ on atomic.Bool }

// RoundTrip asks for real, or fails.
func (s *secondPages) RoundTrip(req *http.Request) (*http.Response, error) {
	if s.on.Load() && req.URL.Query().Has("after_token") {
		return &http.Response{StatusCode: 500, Body: http.NoBody, Header: http.Header{}, Request: req}, nil
	}
	return http.DefaultTransport.RoundTrip(req)
}
