package runpod_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/runpod"
	"headrace/router/endpoint"
)

// clock is moved by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// stage is a fake account with Actors that act on it.
type stage struct {
	*fakerunpod.Cloud
	t     *testing.T
	clock *clock
	log   *safeLog
	opt   runpod.ActorOptions

	probes int
}

func newStage(t *testing.T, permits ...runpod.Permit) *stage {
	t.Helper()
	c, err := fakerunpod.Start(t.Context(), fakerunpod.Config{APIKey: fakeKey, TimeScale: 100, Management: fakerunpod.Management{PerMinute: 1e6, PerHour: 1e7, PerDay: 1e8}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	s := &stage{Cloud: c, t: t, clock: &clock{t: time.Unix(1_900_000_000, 0)}, log: &safeLog{}}
	s.opt = runpod.ActorOptions{
		Key: fakeKey, ManagementURL: c.ManagementURL(), Permits: append([]runpod.Permit{{Match: "probe-*", Permission: runpod.MayWake}}, permits...), Memory: runpod.File(filepath.Join(t.TempDir(), "held.json")),
		Log: slog.New(slog.NewTextHandler(s.log, nil)), Now: s.clock.now,
	}
	return s
}

// add adds an endpoint whose workers sleep.
func (s *stage) add(cfg fakerunpod.EndpointConfig) *fakerunpod.Endpoint {
	if cfg.ColdStart == 0 {
		cfg.ColdStart = time.Second
	}
	return s.AddEndpoint(cfg)
}

// acting is an Actor at work.
type acting struct {
	*runpod.Actor
	s    *stage
	stop func()
}

func (s *stage) start(o runpod.ActorOptions) *acting {
	a := &acting{Actor: runpod.NewActor(o), s: s}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	ended := make(chan struct{})
	go func() { defer close(ended); _ = a.Run(ctx) }()
	a.stop = sync.OnceFunc(func() { cancel(); <-ended })
	s.t.Cleanup(func() {
		a.stop()
		if log := s.log.String(); strings.Contains(log, fakeKey) {
			s.t.Errorf("the log holds the key:\n%s", log)
		} else if s.t.Failed() {
			s.t.Logf("log:\n%s", log)
		}
	})
	return a
}

func want(e *fakerunpod.Endpoint, s *stage, wake bool, hold int) runpod.Want {
	ep := &endpoint.Endpoint{
		ID: endpoint.ID("runpod:" + e.ID()), Provider: "runpod", Tenure: endpoint.Serverless, APIKey: fakeKey,
		BaseURL: s.QueueURL() + "/" + e.ID() + "/openai/v1", Labels: map[string]string{"name": e.Config().Name, "type": "queue"}, Served: []endpoint.Served{{Name: "m"}},
	}
	if e.Config().Type == fakerunpod.LoadBalancer {
		ep.Labels["type"], ep.BaseURL = "load_balancer", strings.ReplaceAll(s.BalancerURL(), "{id}", e.ID())+"/v1"
	}
	return runpod.Want{Endpoint: ep, Wake: wake, Hold: hold, Why: "a test wants it"}
}

// until tells what is wanted again and again, as the gateway does each second, until it is as it should be.
func (a *acting) until(what string, wants []runpod.Want, ok func() bool) {
	a.s.t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		a.Seek(wants)
		select {
		case <-tick.C:
		case <-deadline:
			a.s.t.Fatalf("%s: not so after a minute: %+v, calls %v", what, a.Status(), a.s.ManagementCalls())
		}
	}
}

// settled returns when Run has done what there is to do: it has woken workers of two other endpoints since, one after the other.
func (a *acting) settled(wants []runpod.Want) {
	a.s.t.Helper()
	for range 2 {
		a.s.probes++
		other := a.s.add(fakerunpod.EndpointConfig{ID: fmt.Sprintf("probe-%d", a.s.probes)})
		a.until("a look", append([]runpod.Want{want(other, a.s, true, 0)}, wants...), func() bool { return other.Stats().Requests["run"] == 1 })
	}
}

func (s *stage) patches() int { return s.ManagementCalls()["PATCH serverless/{id}"] }

// TestActionsOff sends nothing to endpoints that are not to be acted on.
func TestActionsOff(t *testing.T) {
	s := newStage(t, runpod.Permit{Match: "off*", Permission: runpod.ActNot}, runpod.Permit{Match: "on", Permission: runpod.MayWake})
	off, unnamed, on := s.add(fakerunpod.EndpointConfig{ID: "e1", Name: "off-1"}), s.add(fakerunpod.EndpointConfig{ID: "e2"}), s.add(fakerunpod.EndpointConfig{ID: "e3", Name: "on"})
	a := s.start(s.opt)
	wants := []runpod.Want{want(off, s, true, 2), want(unnamed, s, true, 2), want(on, s, false, 2)}
	for range 3 {
		a.settled(wants)
		s.clock.pass(time.Minute)
	}
	for _, e := range []*fakerunpod.Endpoint{off, unnamed} {
		if n := e.Stats(); len(n.Requests) != 0 || n.WorkersStarted != 0 {
			t.Errorf("%s: %+v", e.ID(), n)
		}
	}
	if calls := s.ManagementCalls(); len(calls) != 0 {
		t.Errorf("calls of the management API: %v", calls)
	}
	if o := a.Outcome(wants[0].Endpoint, "wake"); o.Done || !strings.Contains(o.Note, `"off"`) {
		t.Errorf("outcome %+v", o)
	}
	if o := a.Outcome(wants[2].Endpoint, "hold"); o.Done || !strings.Contains(o.Note, `"wake"`) {
		t.Errorf("outcome %+v", o)
	}
}

func TestWake(t *testing.T) {
	all := runpod.Permit{Match: "*", Permission: runpod.MayWake}
	t.Run("a queue", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1", Name: "chat", Models: []string{"m"}, IdleTimeout: time.Hour})
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, true, 0)}
		a.until("a worker", wants, func() bool { return e.Stats().Completed == 1 })
		if n := e.Stats(); n.Requests["run"] != 1 || n.WorkersStarted != 1 || len(n.Requests) != 1 {
			t.Errorf("%+v", n)
		}
		if n := e.Workers()[0].Host.Stats(); n.OutputTokens != 1 {
			t.Errorf("waking made %d tokens", n.OutputTokens)
		}
		s.clock.pass(19 * time.Second)
		a.settled(wants)
		if n := e.Stats().Requests["run"]; n != 1 {
			t.Errorf("%d jobs within 20 s", n)
		}
		s.clock.pass(2 * time.Second)
		a.until("a second job", wants, func() bool { return a.Status().Wakes == 4 })
		if n := e.Stats().Requests["run"]; n != 2 {
			t.Errorf("%d jobs", n)
		}
		if st := a.Status(); st.Failed != 0 || !st.Acting {
			t.Errorf("%+v", st)
		}
		if o := a.Outcome(wants[0].Endpoint, "wake"); !o.Done || !o.At.Equal(s.clock.now()) {
			t.Errorf("outcome %+v", o)
		}
		if !strings.Contains(s.log.String(), `action=wake endpoint=runpod:e1 name=chat why="a test wants it"`) {
			t.Error("not in the log")
		}
	})
	t.Run("a handler without an OpenAI route", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1", Generation: fakerunpod.V23Native})
		s.opt.Native = map[string]bool{"e1": true}
		a := s.start(s.opt)
		a.until("a job that succeeds", []runpod.Want{want(e, s, true, 0)}, func() bool { return e.Stats().Completed == 1 })
	})
	t.Run("a load balancer", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1", Type: fakerunpod.LoadBalancer})
		a := s.start(s.opt)
		a.until("a worker", []runpod.Want{want(e, s, true, 0)}, func() bool { return len(e.Workers()) == 1 && e.Workers()[0].Host != nil })
		if n := e.Workers()[0].Host.Stats(); n.OutputTokens != 0 {
			t.Errorf("waking made %d tokens", n.OutputTokens)
		}
	})
	t.Run("trouble", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1"})
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, true, 0)}
		s.Outage(fakerunpod.QueuePlane, true)
		a.until("a failure", wants, func() bool { return a.Status().Failed == 1 })
		s.clock.pass(21 * time.Second)
		a.until("a second one", wants, func() bool { return a.Status().Failed == 2 })
		s.Outage(fakerunpod.QueuePlane, false)
		s.clock.pass(21 * time.Second)
		a.settled(wants)
		if n := e.Stats().Requests["run"]; n != 0 {
			t.Errorf("%d jobs 21 s after the second failure in a row", n)
		}
		if o := a.Outcome(wants[0].Endpoint, "wake"); o.Done || !strings.Contains(o.Note, "502") {
			t.Errorf("outcome %+v", o)
		}
		s.clock.pass(20 * time.Second)
		a.until("a worker in the end", wants, func() bool { return e.Stats().Requests["run"] == 1 })
	})
}

func TestHoldAndLetGo(t *testing.T) {
	all := runpod.Permit{Match: "*", Permission: runpod.MayHold}
	t.Run("while it is wanted", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1", Name: "chat", IdleTimeout: 7 * time.Second, WorkersMax: 2})
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, false, 3)}
		a.until("held", wants, func() bool { return a.Status().Holds == 1 })
		if e.WorkersMin() != 1 {
			t.Errorf("min %d", e.WorkersMin())
		}
		if kept, err := os.ReadFile(string(s.opt.Memory.(runpod.File))); err != nil || !strings.Contains(string(kept), `"was": 0`) { //nolint:forcetypeassert // a test
			t.Errorf("remembered: %s, %v", kept, err)
		}
		a.until("a worker", wants, func() bool { return len(e.Workers()) == 1 && e.Workers()[0].Status == fakerunpod.Idle })
		if o := a.Outcome(wants[0].Endpoint, "hold"); !o.Done || !strings.Contains(o.Note, "max_held is 1") {
			t.Errorf("outcome %+v", o)
		}
		if h := a.Status().Held; len(h) != 1 || h[0].Endpoint != "runpod:e1" || h[0].Was != 0 || h[0].Set != 1 || h[0].Why != "a test wants it" {
			t.Errorf("held %+v", h)
		}
		none := []runpod.Want{want(e, s, false, 0)}
		a.settled(none)
		s.clock.pass(59 * time.Second)
		a.settled(none)
		a.settled(wants) // wanted again within the minute: it starts anew
		s.clock.pass(59 * time.Second)
		a.settled(none)
		if n := s.patches(); n != 1 || e.WorkersMin() != 1 {
			t.Errorf("%d changes within a minute, min %d", n, e.WorkersMin())
		}
		s.clock.pass(61 * time.Second)
		a.until("let go", none, func() bool { st := a.Status(); return st.LetGo == 1 && len(st.Held) == 0 })
		if e.WorkersMin() != 0 || s.patches() != 2 || len(a.Status().Held) != 0 {
			t.Errorf("min %d, %d changes, %+v", e.WorkersMin(), s.patches(), a.Status())
		}
		if _, err := os.Stat(string(s.opt.Memory.(runpod.File))); !errors.Is(err, os.ErrNotExist) { //nolint:forcetypeassert // a test
			t.Errorf("still remembered: %v", err)
		}
		for _, line := range []string{"action=hold endpoint=runpod:e1", `action="let go" endpoint=runpod:e1`} {
			if !strings.Contains(s.log.String(), line) {
				t.Errorf("not in the log: %s", line)
			}
		}
	})
	t.Run("one of two", func(t *testing.T) {
		s := newStage(t, all)
		one, two := s.add(fakerunpod.EndpointConfig{ID: "e1"}), s.add(fakerunpod.EndpointConfig{ID: "e2"})
		a := s.start(s.opt)
		wants := []runpod.Want{want(one, s, false, 1), want(two, s, false, 1)}
		a.until("one held, the other seen", wants, func() bool { return a.Outcome(wants[1].Endpoint, "hold").Note != "" })
		if one.WorkersMin() != 1 || two.WorkersMin() != 0 {
			t.Errorf("min %d and %d", one.WorkersMin(), two.WorkersMin())
		}
		wants[0].Hold = 0
		a.settled(wants)
		s.clock.pass(61 * time.Second)
		a.until("the other instead", wants, func() bool { return one.WorkersMin() == 0 && two.WorkersMin() == 1 })
	})
	t.Run("never below the operator's own", func(t *testing.T) {
		s := newStage(t, all)
		s.opt.MaxHeld = 2
		e := s.add(fakerunpod.EndpointConfig{ID: "e1", WorkersMin: 1, WorkersMax: 5})
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, false, 1)}
		a.until("seen", wants, func() bool { return strings.Contains(a.Outcome(wants[0].Endpoint, "hold").Note, "is 1 already") })
		if s.patches() != 0 {
			t.Error("changed what is enough")
		}
		s.clock.pass(61 * time.Second)
		wants[0].Hold = 5
		a.until("two more", wants, func() bool { return e.WorkersMin() == 3 })
		wants[0].Hold = 2
		a.settled(wants)
		s.clock.pass(61 * time.Second)
		a.until("one less", wants, func() bool { return e.WorkersMin() == 2 && a.Status().LetGo == 1 })
		a.stop()
		if e.WorkersMin() != 1 {
			t.Errorf("min %d after the end, 1 before", e.WorkersMin())
		}
	})
	t.Run("the operator's last word", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1"})
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, false, 1)}
		a.until("held", wants, func() bool { return a.Status().Holds == 1 })
		e.SetWorkersMin(3)
		a.stop()
		if e.WorkersMin() != 3 || s.patches() != 1 || !strings.Contains(s.log.String(), "somebody else has changed the endpoint") {
			t.Errorf("min %d after %d changes", e.WorkersMin(), s.patches())
		}
	})
	t.Run("the config no longer allows it", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1"})
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, false, 1)}
		a.until("held", wants, func() bool { return a.Status().Holds == 1 })
		s.clock.pass(21 * time.Second)
		o := s.opt
		o.Permits = nil
		a.Configure(o)
		a.until("let go", wants, func() bool { return e.WorkersMin() == 0 && a.Status().LetGo == 1 })
		a.Configure(s.opt)
		s.clock.pass(61 * time.Second)
		a.until("held again", wants, func() bool { return e.WorkersMin() == 1 && a.Status().Holds == 2 })
		a.Configure(runpod.ActorOptions{Log: s.opt.Log, Now: s.clock.now}) // no account any more
		a.until("let go", wants, func() bool { return e.WorkersMin() == 0 && a.Status().LetGo == 2 })
	})
	t.Run("nowhere to remember it", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1"})
		s.opt.Memory = nil
		a := s.start(s.opt)
		a.settled([]runpod.Want{want(e, s, false, 1)})
		s.opt.Memory = runpod.File(filepath.Join(t.TempDir(), "no", "such", "directory"))
		b := s.start(s.opt)
		b.until("an error", []runpod.Want{want(e, s, false, 1)}, func() bool { return b.Status().Failed == 1 })
		if len(s.ManagementCalls()) != 0 {
			t.Errorf("%v", s.ManagementCalls())
		}
	})
}

// TestCrashWhileHolding lets the next run find what one that died had held.
func TestCrashWhileHolding(t *testing.T) {
	all := runpod.Permit{Match: "*", Permission: runpod.MayHold}
	hold := func(t *testing.T) (*stage, *fakerunpod.Endpoint) {
		t.Helper()
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1", Name: "chat"})
		a := s.start(s.opt)
		a.until("held", []runpod.Want{want(e, s, false, 1)}, func() bool { return a.Status().Holds == 1 })
		s.Outage(fakerunpod.ManagementPlane, true) // what it does at its end has no effect, as if it had been killed
		a.stop()
		s.Outage(fakerunpod.ManagementPlane, false)
		if e.WorkersMin() != 1 || !strings.Contains(s.log.String(), "workers are still held and cost money") {
			t.Fatalf("min %d", e.WorkersMin())
		}
		s.clock.pass(time.Hour)
		return s, e
	}
	t.Run("not wanted any more", func(t *testing.T) {
		s, e := hold(t)
		a := s.start(s.opt)
		a.until("found", nil, func() bool { return len(a.Status().Held) == 1 })
		if !strings.Contains(s.log.String(), "has left workers held") || !strings.Contains(s.log.String(), "workers_min_was=0 workers_min=1") {
			t.Error("not in the log")
		}
		s.clock.pass(61 * time.Second)
		a.until("let go", nil, func() bool { return e.WorkersMin() == 0 && len(a.Status().Held) == 0 })
	})
	t.Run("still wanted", func(t *testing.T) {
		s, e := hold(t)
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, false, 1)}
		a.until("looked at", wants, func() bool { return strings.Contains(a.Outcome(wants[0].Endpoint, "hold").Note, "is 1 already") })
		if h := a.Status().Held; len(h) != 1 || h[0].Was != 0 || s.patches() != 1 {
			t.Errorf("held %+v, %d changes", h, s.patches())
		}
		a.stop()
		if e.WorkersMin() != 0 {
			t.Errorf("min %d after the end", e.WorkersMin())
		}
	})
	t.Run("put back by hand", func(t *testing.T) {
		s, e := hold(t)
		e.SetWorkersMin(0)
		before := s.patches()
		a := s.start(s.opt)
		a.until("found", nil, func() bool { return len(a.Status().Held) == 1 })
		s.clock.pass(61 * time.Second)
		a.until("forgotten", nil, func() bool { return len(a.Status().Held) == 0 })
		if s.patches() != before {
			t.Error("it was changed")
		}
	})
	t.Run("holding is not allowed any more", func(t *testing.T) {
		s, e := hold(t)
		s.opt.Permits = nil
		a := s.start(s.opt)
		a.until("let go", nil, func() bool { return e.WorkersMin() == 0 })
	})
	t.Run("the endpoint is gone", func(t *testing.T) {
		s, e := hold(t)
		e.Delete()
		a := s.start(s.opt)
		a.until("found", nil, func() bool { return len(a.Status().Held) == 1 })
		s.clock.pass(61 * time.Second)
		a.until("forgotten", nil, func() bool { return len(a.Status().Held) == 0 })
	})
	t.Run("a memory that cannot be read", func(t *testing.T) {
		s, e := hold(t)
		if err := os.WriteFile(string(s.opt.Memory.(runpod.File)), []byte("{"), 0o600); err != nil { //nolint:forcetypeassert // a test
			t.Fatal(err)
		}
		a := s.start(s.opt)
		a.until("an error", []runpod.Want{want(e, s, false, 2)}, func() bool { return a.Status().Failed == 1 })
		if s.patches() != 1 || !strings.Contains(a.Status().LastError, "cannot be read") {
			t.Errorf("%d changes, %+v", s.patches(), a.Status())
		}
	})
}

func TestTroubleWhileHolding(t *testing.T) {
	all := runpod.Permit{Match: "*", Permission: runpod.MayHold}
	t.Run("a key that may not", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1"})
		s.RefuseChanges(2)
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, false, 1)}
		a.until("refused", wants, func() bool { return a.Status().Failed == 1 })
		if st := a.Status(); !strings.Contains(st.LastError, "access denied") || len(st.Held) != 0 || st.Holds != 0 || st.LastErrorAt == nil {
			t.Errorf("%+v", st)
		}
		s.clock.pass(21 * time.Second)
		a.until("refused again", wants, func() bool { return a.Status().Failed == 2 })
		s.clock.pass(21 * time.Second) // of the 40 s that it rests now
		a.settled(wants)
		if s.patches() != 2 {
			t.Errorf("%d changes", s.patches())
		}
		s.clock.pass(21 * time.Second)
		a.until("held", wants, func() bool { return a.Status().Holds == 1 && e.WorkersMin() == 1 })
	})
	t.Run("an answer that is lost", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1"})
		s.LoseChangeAnswers(1)
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, false, 1)}
		a.until("not known", wants, func() bool { return a.Status().Failed == 1 })
		if h := a.Status().Held; len(h) != 1 || h[0].Was != 0 {
			t.Errorf("held %+v", h)
		}
		s.clock.pass(21 * time.Second)
		a.until("known", wants, func() bool { return strings.Contains(a.Outcome(wants[0].Endpoint, "hold").Note, "already") })
		s.LoseChangeAnswers(1)
		a.stop() // the answer to letting go is lost, and the second try sees that it was done
		if e.WorkersMin() != 0 || s.patches() != 2 {
			t.Errorf("min %d after %d changes", e.WorkersMin(), s.patches())
		}
		if _, err := os.Stat(string(s.opt.Memory.(runpod.File))); !errors.Is(err, os.ErrNotExist) { //nolint:forcetypeassert // a test
			t.Errorf("still remembered: %v", err)
		}
	})
	t.Run("an outage", func(t *testing.T) {
		s := newStage(t, all)
		e := s.add(fakerunpod.EndpointConfig{ID: "e1"})
		s.Outage(fakerunpod.ManagementPlane, true)
		a := s.start(s.opt)
		wants := []runpod.Want{want(e, s, false, 1)}
		a.until("failed", wants, func() bool { return a.Status().Failed == 1 })
		s.Outage(fakerunpod.ManagementPlane, false)
		s.clock.pass(21 * time.Second)
		a.until("held", wants, func() bool { return a.Status().Holds == 1 })
		s.Outage(fakerunpod.ManagementPlane, true)
		none := []runpod.Want{want(e, s, false, 0)}
		a.settled(none)
		s.clock.pass(61 * time.Second)
		a.until("not let go", none, func() bool { return a.Status().Failed == 2 })
		s.Outage(fakerunpod.ManagementPlane, false)
		s.clock.pass(21 * time.Second)
		a.until("let go", none, func() bool { return e.WorkersMin() == 0 && a.Status().LetGo == 1 })
	})
}

// shared is a turn and a memory that two Actors share.
type shared struct {
	mu   sync.Mutex
	has  *seat
	kept []byte
	down bool
}

type seat struct {
	*shared
	asked int
}

func (s *seat) tries() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

var errDown = errors.New("down")

func (s *seat) Take(context.Context) (ours, anew bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.down {
		return false, false, errDown
	}
	if anew = s.has == nil; anew {
		s.has = s
	}
	return s.has == s, anew, nil
}

func (s *seat) Give(context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has == s {
		s.has = nil
	}
}

func (s *shared) Load(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept, nil
}

func (s *shared) Save(_ context.Context, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = b
	return nil
}

// TestReplicasTakeTurns has one of two replicas act, and the other follow when it is gone.
func TestReplicasTakeTurns(t *testing.T) {
	s := newStage(t, runpod.Permit{Match: "*", Permission: runpod.MayHold})
	e := s.add(fakerunpod.EndpointConfig{ID: "e1"})
	both := &shared{}
	o := s.opt
	o.Memory, o.Turn = both, &seat{shared: both}
	first := s.start(o)
	wants := []runpod.Want{want(e, s, false, 1)}
	first.until("held by the first", wants, func() bool { return first.Status().Holds == 1 })
	chair := &seat{shared: both}
	o.Turn = chair
	second := s.start(o)
	for range 3 {
		s.clock.pass(10 * time.Second)
		before := chair.tries()
		second.until("an attempt", wants, func() bool { return chair.tries() > before })
	}
	if st := second.Status(); st.Acting || st.Wakes+st.Holds != 0 {
		t.Errorf("the second acts as well: %+v", st)
	}
	both.mu.Lock()
	both.has = nil // the first is cut off, and its lease has run out
	both.mu.Unlock()
	s.clock.pass(10 * time.Second)
	second.until("the second takes over", wants, func() bool { st := second.Status(); return st.Acting && len(st.Held) == 1 })
	first.until("the first has seen it", wants, func() bool { st := first.Status(); return !st.Acting && len(st.Held) == 0 })
	first.stop()
	if e.WorkersMin() != 1 {
		t.Error("the first has let go of what is the second's")
	}
	both.mu.Lock()
	both.down = true
	both.mu.Unlock()
	s.clock.pass(10 * time.Second)
	second.until("nobody acts", nil, func() bool { return !second.Status().Acting })
	if e.WorkersMin() != 1 {
		t.Error("let go although it cannot be told whose it is")
	}
	second.stop()
	if e.WorkersMin() != 0 || both.kept != nil {
		t.Errorf("min %d after the end, kept %s", e.WorkersMin(), both.kept)
	}
}
