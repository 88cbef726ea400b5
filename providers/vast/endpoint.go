package vast

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// endpoint describes an instance as it is known now.
func (p *Provider) endpoint(h *host, now time.Time) endpoint.Endpoint {
	r := h.row
	ep := endpoint.Endpoint{
		ID: endpointID(h.id), Provider: "vast", Served: h.served,
		Hardware: r.hardware(), Price: r.price(h.readAt), Until: r.End.time(), Started: r.Start.time(), Labels: r.labels(),
	}
	ep.Trust, _ = r.trust()
	ep.Region, _ = r.region()
	ep.MaxNumSeqs, _ = strconv.Atoi(r.Args.flag("--max-num-seqs"))
	ep.MaxNumSeqs = max(ep.MaxNumSeqs, 0)
	switch {
	case !r.IsBid.set:
	case r.IsBid.yes:
		ep.Tenure = endpoint.Interruptible
	default:
		ep.Tenure = endpoint.OnDemand
	}
	if ep.Served == nil {
		for _, m := range p.opt.Models {
			ep.Served = append(ep.Served, endpoint.Served{Name: m})
		}
	}
	ep.BaseURL = h.base + "/v1"
	if h.base == "" { // nobody knows where it is; nothing is sent to it in this state
		ep.BaseURL = "http://instance-" + strconv.FormatInt(h.id, 10) + ".invalid/v1"
	}
	if ep.TLS = h.found.tls; h.known {
		ep.APIKey = h.found.key // shown to nobody else than the server that proved to be it
		ep.Labels["vast_port"] = strconv.Itoa(h.found.addr.inner)
		ep.Labels["vast_identity"] = "open"
		if h.found.keyed {
			ep.Labels["vast_identity"] = "key"
		}
	}
	if !h.ending.IsZero() {
		ep.Until = h.ending
	}
	ep.State, ep.StateReason = p.state(h, now)
	return ep
}

// state is what the control plane says, and for what runs, what the instance itself says.
func (p *Provider) state(h *host, now time.Time) (endpoint.State, string) {
	end := h.row.End.time()
	switch {
	case !h.says.candidate:
		return h.says.state, h.says.reason
	case !end.IsZero() && p.opt.LeaveBefore >= 0 && end.Sub(now) < p.opt.LeaveBefore:
		return endpoint.Draining, "its contract ends at " + end.Format("2006-01-02 15:04 MST")
	case p.opt.MaxUSDPerHour > 0 && h.row.price(h.readAt).USDPerHour > p.opt.MaxUSDPerHour:
		return endpoint.Draining, fmt.Sprintf("it costs $%.4g an hour, and max_usd_per_hour is $%.4g", h.row.price(h.readAt).USDPerHour, p.opt.MaxUSDPerHour)
	case h.known:
		return endpoint.Ready, h.warnings()
	}
	if _, ok := h.row.publicIP(); !ok && h.byIDIP == "" {
		return endpoint.Starting, "running, but Vast.ai has not published its address yet"
	}
	switch {
	case len(h.addrs) == 0 && p.opt.Port != 0 && (len(h.row.Ports.tcp) > 0 || len(h.byID.tcp) > 0):
		return endpoint.Starting, fmt.Sprintf("running, but its port %d is not mapped: rent it with -p %d:%d", p.opt.Port, p.opt.Port, p.opt.Port)
	case len(h.addrs) == 0:
		return endpoint.Starting, "running, but Vast.ai has not published its ports yet"
	case h.why == "":
		return endpoint.Starting, "running; it is being asked who it is"
	}
	return endpoint.Starting, "running, but " + h.why
}

// warnings are what an operator should know of an instance that serves.
func (h *host) warnings() string {
	var w []string
	if !h.found.keyed && h.found.tls.Pin == "" {
		w = append(w, "it asks for no key, so that another server at its address would be taken for it")
	}
	if d, u := h.row.DiskSpace.v, h.row.DiskUsage.v; d > 0 && u >= 0.98*d {
		w = append(w, "its disk is at 98 % or more")
	}
	return strings.Join(w, "; ")
}

func (r *row) hardware() endpoint.Hardware {
	hw := endpoint.Hardware{GPU: string(r.GPU)}
	if r.GPUs.v > 0 && r.GPUs.v < 1<<16 {
		hw.GPUCount = int(r.GPUs.v)
	}
	if r.Machine.v > 0 {
		hw.Machine = "vast:machine:" + strconv.FormatInt(int64(r.Machine.v), 10)
	}
	if r.HostID.v > 0 {
		hw.Host = "vast:host:" + strconv.FormatInt(int64(r.HostID.v), 10)
	}
	return hw
}

// price is what the instance costs while it runs, what it goes on to cost while it is stopped, and its traffic. A TB is 1000 GB:
// the fields in USD per GB differ from that by 1000 or 1024.
func (r *row) price(asOf time.Time) endpoint.Price {
	pr := endpoint.Price{AsOf: asOf}
	if !r.DPHTotal.set || r.DPHTotal.v < 0 {
		return endpoint.Price{}
	}
	pr.Basis, pr.USDPerHour, pr.Source = endpoint.PerHour, r.DPHTotal.v, "vast dph_total"
	if d := r.Search.Discounted; r.reserved() && d.v > 0 && d.v < pr.USDPerHour {
		pr.USDPerHour, pr.Source = d.v, "vast discountedTotalPerHour"
	}
	switch {
	case r.Actual.word() != "running" && r.Cur.word() == "stopped" && r.Accrues.Total.set: // storage alone, as it accrues now
		pr.USDPerHourStopped = r.Accrues.Total.v
	case r.StorageTotal.set:
		pr.USDPerHourStopped = r.StorageTotal.v
	default:
		pr.USDPerHourStopped = r.Search.DiskHour.v
	}
	pr.Accrues = r.accrues()
	pr.USDPerGBIn = perGB(r.DownPerTB, r.DownPerGB)
	pr.USDPerGBOut = perGB(r.UpPerTB, r.UpPerGB)
	return pr
}

func perGB(tb, gb number) float64 {
	if tb.set {
		return max(tb.v/1000, 0)
	}
	return max(gb.v, 0)
}

// reserved tells whether the contract was paid ahead for a discount.
func (r *row) reserved() bool { return r.Discount.v > 0 || r.Search.Discount.v > 0 }

// trust is what Vast.ai says of whose machine it is. A data centre counts as such only while Vast.ai has verified the machine: where
// it stands says nothing of who runs it until then, and a verified machine must not rank below one that nobody has looked at
// (docs.vast.ai/guides/instances/choosing/find-and-rent, host/verification-stages).
func (r *row) trust() (t endpoint.Trust, odd string) {
	hosting, verified := r.HostingType.word(), r.Verification.word()
	switch hosting {
	case "", "0", "community", "consumer", "1", "datacenter":
	default:
		odd = "unknown hosting_type " + clip(hosting, 32)
	}
	switch verified {
	case "verified":
		t = endpoint.TrustVerified
	case "", "unverified", "deverified":
		t = endpoint.TrustCommunity
	default:
		t, odd = endpoint.TrustCommunity, "unknown verification "+clip(verified, 32)
	}
	if t == endpoint.TrustVerified && (hosting == "1" || hosting == "datacenter") {
		t = endpoint.TrustDatacenter
	}
	return t, odd
}

// region is the country of "Region, CC", whose region may be empty.
func (r *row) region() (country, odd string) {
	for _, s := range []string{string(r.Country), string(r.Geolocation)} {
		s = strings.ToUpper(strings.TrimSpace(s[strings.LastIndexByte(s, ',')+1:]))
		if len(s) == 2 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'A' && s[1] <= 'Z' {
			return s, ""
		}
	}
	if r.Geolocation != "" {
		odd = "geolocation without a country code"
	}
	return "", odd
}

func (r *row) oddities() []string {
	_, trust := r.trust()
	_, region := r.region()
	out := []string{trust, region}
	if r.Ports.odd {
		out = append(out, "ports of an unknown shape")
	}
	if !r.IsBid.set {
		out = append(out, "instance without is_bid")
	}
	if !r.DPHTotal.set {
		out = append(out, "instance without dph_total")
	}
	return out
}

func (r *row) labels() map[string]string {
	m := make(map[string]string, 10)
	put := func(k, v string) {
		if v != "" {
			m[k] = v
		}
	}
	put("vast_label", clip(string(r.Label), 256))
	put("vast_template", clip(string(r.TemplateName), 128))
	put("vast_geolocation", clip(string(r.Geolocation), 128))
	put("vast_verification", clip(string(r.Verification), 32))
	if r.Reliability.set { // 0..1, of the machine; two digits, so that it does not change all the time
		put("vast_reliability", strconv.FormatFloat(r.Reliability.v, 'f', 2, 64))
	}
	if r.GPUFrac.set && r.GPUFrac.v > 0 && r.GPUFrac.v < 1 {
		put("vast_machine_share", strconv.FormatFloat(r.GPUFrac.v, 'f', -1, 64))
	}
	if r.StaticIP.set {
		put("vast_static_ip", strconv.FormatBool(r.StaticIP.yes))
	}
	if r.reserved() {
		put("vast_reserved", "true")
	}
	return m
}

func idOf(ep *endpoint.Endpoint) int64 {
	id, _ := strconv.ParseInt(strings.TrimPrefix(string(ep.ID), idPrefix), 10, 64) // we wrote it
	return id
}

// same tells whether two endpoints are equal but for the date of their price.
func same(a, b *endpoint.Endpoint) bool {
	ap, bp := a.Price, b.Price
	ap.AsOf, bp.AsOf = time.Time{}, time.Time{}
	return a.ID == b.ID && a.BaseURL == b.BaseURL && a.APIKey == b.APIKey && a.TLS == b.TLS &&
		a.State == b.State && a.StateReason == b.StateReason && ap == bp && a.Tenure == b.Tenure && a.Until.Equal(b.Until) &&
		a.Hardware == b.Hardware && a.Trust == b.Trust && a.Region == b.Region && a.MaxNumSeqs == b.MaxNumSeqs &&
		maps.Equal(a.Labels, b.Labels) && slices.EqualFunc(a.Served, b.Served, func(x, y endpoint.Served) bool {
		return x.Name == y.Name && x.MaxContext == y.MaxContext && string(x.Card) == string(y.Card)
	})
}
