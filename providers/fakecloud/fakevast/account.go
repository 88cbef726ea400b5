package fakevast

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"time"
)

// SetCredit changes the balance in USD. Without any, all instances stop at once.
func (c *Cloud) SetCredit(usd float64) {
	c.mu.Lock()
	c.credit = usd
	is := c.all()
	c.mu.Unlock()
	if usd > 0 {
		return
	}
	c.Fire("client:low_credit")
	for _, i := range is {
		i.op.Lock()
		i.begin(step{do: func() { i.level(off) }, tell: func(v *view) { i.halt(v, "exited") }, event: "client:instance_stopped"})
		i.op.Unlock()
	}
}

func (c *Cloud) currentUser(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.json(map[string]any{
		"id": c.cfg.UserID, "email": "someone@example.com", "username": "someone", "credit": c.credit, "balance": 0,
		"ssh_key": "ssh-ed25519 AAAA",
	})
}

// Charge is what an instance has cost so far, in USD.
type Charge struct{ GPU, Disk float64 }

// Charge returns what the instance has cost so far. The clock of the service runs TimeScale times as fast as the
// wall's, and an hour of it costs what an hour costs.
func (i *Instance) Charge() Charge {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	return i.charge(i.c.cfg.Now())
}

// charge is Charge at a time. The caller holds c.mu.
func (i *Instance) charge(now time.Time) Charge {
	ch := i.paid
	hours := i.c.elapsed(now.Sub(i.since)).Hours()
	if i.v.gpu && !i.v.offline {
		ch.GPU += hours * i.cfg.DPHBase
	}
	if !i.v.offline {
		ch.Disk += hours * i.storageUSDPerHour()
	}
	return ch
}

// pay closes the books before price or state change. The caller holds c.mu.
func (i *Instance) pay() {
	now := i.c.cfg.Now()
	i.paid = i.charge(now)
	i.since = now
}

// SetBilling has charges tell factor times what was used. Charge goes on to tell the latter.
func (c *Cloud) SetBilling(factor float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.billing = factor
}

// charges is GET /api/v0/charges/.
func (c *Cloud) charges(a *asked) {
	q, err := parseQuery(a.r.URL.Query(), 500, []string{"day", "type"})
	if err != nil {
		refuseQuery(a, err)
		return
	}
	from, okFrom := number(q.filters["day"]["gte"])
	to, okTo := number(q.filters["day"]["lte"])
	if !okFrom || !okTo {
		writeJSON(a.w, http.StatusBadRequest, map[string]any{
			"success": false, "msg": "Must provide both 'day' gte and lte filters for instance charges",
		})
		return
	}
	if kinds, ok := q.filters["type"]["in"]; ok && !holds("instance", "in", kinds) {
		a.json(map[string]any{"success": true, "count": 0, "total": 0, "next_token": nil, "results": []any{}})
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	round := func(usd float64) float64 { return math.Round(usd*1000) / 1000 }
	now := c.cfg.Now()
	rows := []map[string]any{}
	for _, i := range c.all() {
		start, end := float64(i.started.Unix()), float64(c.cfg.Now().Unix())
		if start > to || end < from {
			continue
		}
		ch := i.charge(now)
		ch.GPU, ch.Disk = ch.GPU*c.billing, ch.Disk*c.billing
		item := func(kind string, usd, perHour float64) map[string]any {
			return map[string]any{
				"start": int(start), "end": int(end), "type": kind, "source": nil, "amount": round(usd), "metadata": map[string]any{}, "items": []any{},
				"description": fmt.Sprintf("%.3f hours at $%.3f/hour", usd/max(perHour, 1e-9), perHour),
			}
		}
		rows = append(rows, map[string]any{
			"id": i.cfg.ID, "start": int(start), "end": int(end), "type": "instance", "source": "instance-" + itoa(i.cfg.ID),
			"description": "Instance " + itoa(i.cfg.ID) + " Charges", "amount": round(ch.GPU + ch.Disk),
			"metadata": map[string]any{"label": i.cfg.Label},
			"items": []any{
				item("gpu", ch.GPU, i.cfg.DPHBase), item("disk", ch.Disk, i.storageUSDPerHour()), item("bwd", 0, 0), item("bwu", 0, 0),
			},
		})
	}
	total := len(rows)
	begin := q.after.position(rows, true)
	stop := min(begin+q.limit, total)
	var next any
	if stop < total {
		last, _ := rows[stop-1]["id"].(int64)
		next = token(after{last, int64(stop)})
	}
	page := rows[begin:stop]
	for _, r := range page {
		delete(r, "id")
	}
	a.json(map[string]any{"success": true, "count": len(page), "total": total, "next_token": next, "results": page})
}

// gpuMetrics is GET /api/v0/metrics/gpu/current/: what the offers cost.
func (c *Cloud) gpuMetrics(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	prices := map[string][]float64{}
	for _, o := range c.offers {
		prices[o.cfg.GPUName] = append(prices[o.cfg.GPUName], o.cfg.DPHBase/float64(o.cfg.NumGPUs))
	}
	gpus := []any{}
	for _, name := range slices.Sorted(maps.Keys(prices)) {
		p := prices[name]
		slices.Sort(p)
		at := func(share float64) float64 { return p[int(share*float64(len(p)-1))] }
		gpus = append(gpus, map[string]any{
			"gpu_name": name, "total": len(p), "available": len(p), "unavailable": 0, "rented_verified": 0, "avail_verified": len(p),
			"rented_unverified": 0, "avail_unverified": 0, "usage": 0.0, "usage_30d": 0.0, "dlperf": 106.6, "tflops": 82.9,
			"price_p10": at(0.1), "price_p25": at(0.25), "price_median": at(0.5), "price_p75": at(0.75), "price_p90": at(0.9),
			"tflops_per_dollar": 82.9 / at(0.5), "dlperf_per_dollar": 106.6 / at(0.5),
		})
	}
	a.json(map[string]any{"success": true, "gpus": gpus})
}
