package fakerunpod

import (
	"math"
	"net/http"
	"slices"
	"time"
)

// bill is what something cost within an hour.
type bill struct {
	hour       time.Time
	serverless string // an endpoint's id, or
	pod        string // a pod's
	usd        float64
	seconds    float64
}

// charge adds what was used from from to until to the books.
func (c *Cloud) charge(serverless, pod string, from, until time.Time, usdPerHour float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for from.Before(until) {
		hour := from.UTC().Truncate(time.Hour)
		to := until
		if next := hour.Add(time.Hour); next.Before(to) {
			to = next
		}
		s := to.Sub(from).Seconds()
		i := slices.IndexFunc(c.bills, func(b bill) bool { return b.hour.Equal(hour) && b.serverless == serverless && b.pod == pod })
		if i < 0 {
			c.bills = append(c.bills, bill{hour: hour, serverless: serverless, pod: pod})
			i = len(c.bills) - 1
		}
		c.bills[i].usd += s / 3600 * usdPerHour
		c.bills[i].seconds += s
		from = to
	}
}

// bill charges w until now. The caller holds e.mu.
func (w *worker) bill() { w.billTo(w.e.c.cfg.BillNow()) }

func (w *worker) billTo(now time.Time) {
	if w.billed.IsZero() || !w.billed.Before(now) {
		return
	}
	usd := w.e.c.gpu(w.gpu).serverless * float64(w.e.cfg.GPUCount)
	w.e.c.charge(w.e.cfg.ID, "", w.billed, now, usd)
	d := now.Sub(w.billed)
	w.span += d
	w.e.stats.WorkerSeconds += d.Seconds()
	w.e.stats.USD += d.Hours() * usd
	w.billed = now
}

// round bills the last second that was begun. The caller holds e.mu.
func (w *worker) round() {
	if w.billed.IsZero() {
		return
	}
	unit := w.e.c.limit(time.Second)
	if over := w.span % unit; over > 0 {
		w.billTo(w.billed.Add(unit - over))
	}
	w.span = 0
}

// settle charges all workers until now.
func (e *Endpoint) settle() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.workers {
		w.bill()
	}
}

// Bill is what an endpoint (by id) or a pod has cost so far, in USD.
func (c *Cloud) Bill(id string) (usd float64) {
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.bills {
		if b.serverless == id || b.pod == id {
			usd += b.usd
		}
	}
	return usd
}

func (c *Cloud) settle() {
	for _, e := range c.endpointList() {
		e.settle()
	}
	for _, p := range c.podList() {
		p.settle()
	}
}

// SetBilling has the billing API tell factor times what was used. Bill and Stats go on to tell the latter.
func (c *Cloud) SetBilling(factor float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.billing = factor
}

// bucketOf is the begin of the bucket that holds t.
func bucketOf(size string, t time.Time) (from, to time.Time) {
	t = t.UTC()
	y, m, d := t.Date()
	switch size {
	case "hour":
		from = t.Truncate(time.Hour)
		return from, from.Add(time.Hour)
	case "week":
		from = time.Date(y, m, d-(int(t.Weekday())+6)%7, 0, 0, 0, 0, time.UTC)
		return from, from.AddDate(0, 0, 7)
	case "month":
		from = time.Date(y, m, 1, 0, 0, 0, 0, time.UTC)
		return from, from.AddDate(0, 1, 0)
	case "year":
		from = time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC)
		return from, from.AddDate(1, 0, 0)
	default:
		from = time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
		return from, from.AddDate(0, 0, 1)
	}
}

// serveBilling answers /billing/serverless and /billing/pods.
func (c *Cloud) serveBilling(w http.ResponseWriter, r *http.Request, kind string) {
	q := r.URL.Query()
	size := q.Get("bucketSize")
	if size == "" {
		size = "day"
	}
	if !slices.Contains([]string{"hour", "day", "week", "month", "year"}, size) {
		problem(w, http.StatusUnprocessableEntity, "bucketSize: unsupported value")
		return
	}
	last := q.Get("lastN")
	if last != "" && (q.Has("startTime") || q.Has("endTime") || number(last) < 1) {
		problem(w, http.StatusBadRequest, "lastN and startTime/endTime are mutually exclusive")
		return
	}
	now := c.cfg.BillNow()
	_, end := bucketOf(size, now)
	begin, _ := bucketOf(size, now.AddDate(0, 0, -30))
	if last != "" {
		begin, _ = bucketOf(size, now)
		for range number(last) - 1 {
			begin, _ = bucketOf(size, begin.Add(-time.Second))
		}
	}
	for name, into := range map[string]*time.Time{"startTime": &begin, "endTime": &end} {
		v := q.Get(name)
		if v == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339, v)
		if err != nil {
			problem(w, http.StatusUnprocessableEntity, name+": want RFC 3339")
			return
		}
		*into, _ = bucketOf(size, t)
	}
	c.settle()
	idName, want := "serverlessId", q.Get("serverlessId")
	if kind == "pods" {
		idName, want = "podId", q.Get("podId")
	}
	type key struct {
		from time.Time
		id   string
	}
	sums, ids, order := map[key]float64{}, map[string]bool{}, []key{}
	c.mu.Lock()
	for _, b := range c.bills {
		id := b.serverless
		if kind == "pods" {
			id = b.pod
		}
		from, _ := bucketOf(size, b.hour)
		if id == "" || want != "" && id != want || from.Before(begin) || !from.Before(end) {
			continue
		}
		k := key{from, id}
		if _, ok := sums[k]; !ok {
			order = append(order, k)
		}
		sums[k] += b.usd * c.billing
		ids[id] = true
	}
	c.mu.Unlock()
	amounts := func(usd float64, m map[string]any) map[string]any {
		usd = math.Round(usd*1e6) / 1e6
		m["totalAmount"], m["gpuAmount"], m["cpuAmount"], m["diskAmount"] = usd, usd, 0, 0
		if kind == "serverless" {
			m["feeAmount"] = 0
		}
		return m
	}
	records, total := []any{}, 0.0
	for _, k := range order {
		_, to := bucketOf(size, k.from)
		total += sums[k]
		records = append(records, amounts(sums[k], map[string]any{
			"startTime": k.from.Format(time.RFC3339), "endTime": to.Format(time.RFC3339), idName: k.id,
		}))
	}
	unique := "uniqueServerlessCount"
	if kind == "pods" {
		unique = "uniquePodCount"
	}
	writeJSON(w, http.StatusOK, map[string]any{"records": records, "metadata": map[string]any{
		"query":       map[string]any{"bucketSize": size, "startTime": begin.Format(time.RFC3339), "endTime": end.Format(time.RFC3339)},
		"recordCount": len(records), unique: len(ids), "totals": amounts(total, map[string]any{}),
	}})
}
