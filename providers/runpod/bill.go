package runpod

import (
	"context"
	"encoding/json"
	"math"
	"net/url"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

const (
	billLag    = 10 * time.Minute // RunPod charges every 5 minutes: an hour that has just ended may not be booked yet
	billSpread = 10 * time.Minute // some time within which bills are read is drawn
	billHours  = 24               // that are compared
)

// bookService notes what an endpoint costs from now on, and what its meter has found out since the look before: starts of workers, which are
// billed too (docs.runpod.io/serverless/pricing), and when workers came and went.
func (p *Provider) bookService(s *service, now time.Time) {
	pr := s.ep.Price
	before := s.booked
	s.booked = s.time.meter.Read(now)
	s.booked.At = now
	if pr.Basis != endpoint.PerWorkerSecond {
		p.audit.Book.Rate(s.desc.id, now, math.NaN())
		return
	}
	_, watched := p.audit.Book.Since(s.desc.id)
	p.audit.Book.Rate(s.desc.id, now, float64(s.booked.Up)*pr.USDPerWorkerSecond*3600)
	if watched && !before.At.IsZero() {
		expected := before.Seconds + float64(before.Up)*now.Sub(before.At).Seconds()
		p.audit.Book.Add(s.desc.id, now, (s.booked.Seconds-expected)*pr.USDPerWorkerSecond)
	}
}

// bookPod notes what a pod costs from now on: as told while it runs or starts, its disk while it is stopped.
func (p *Provider) bookPod(pd *pod, now time.Time) {
	usd := pd.usd
	switch {
	case pd.desc.status == "TERMINATED":
		usd = 0
	case pd.ep.Price.Basis != endpoint.PerHour:
		usd = math.NaN()
	case pd.desc.status == "EXITED":
		usd = pd.ep.Price.USDPerHourStopped
	}
	p.audit.Book.Rate(podPrefix+pd.desc.id, now, usd)
}

// planBill sets when the next bill is read: once an hour, a while after an hour that was watched from its begin has ended.
func (p *Provider) planBill(now time.Time) {
	hour := now.Add(-billLag).UTC().Truncate(time.Hour)
	if p.audit.Next.IsZero() {
		hour = hour.Add(time.Hour)
	}
	p.audit.Plan(hour.Add(time.Hour+billLag), billSpread)
}

// bill is what the billing API told.
type bill struct {
	from, to time.Time // whole hours
	records  []billRecord
	err      error
}

type billRecord struct {
	id         string // as the book has it
	hour       time.Time
	usd, other float64
}

// readBill asks what was billed for the last whole hours. Hours are the finest that RunPod bills by.
func (p *Provider) readBill(ctx context.Context, now time.Time) {
	p.audit.Busy = true
	p.planBill(now)
	b := &bill{to: now.Add(-billLag).UTC().Truncate(time.Hour)}
	b.from = b.to.Add(-billHours * time.Hour)
	query := "?" + url.Values{"bucketSize": {"hour"}, "startTime": {b.from.Format(time.RFC3339)}, "endTime": {b.to.Format(time.RFC3339)}}.Encode()
	done := func() {
		p.audit.Busy = false
		var old *api.Bill
		p.update(func(s *api.Status) { old = s.Bill })
		settled := p.audit.Settle(p.opt.Log, old, p.compare(b, now), b.err, now)
		p.update(func(s *api.Status) { s.Bill = settled })
	}
	p.call(ctx, now, "GET /v2/billing/serverless", "/billing/serverless"+query, func(a *api.Answer, err error) {
		if p.takeBill(b, a, err); b.err != nil || len(p.pods) == 0 {
			done()
			return
		}
		p.call(ctx, now, "GET /v2/billing/pods", "/billing/pods"+query, func(a *api.Answer, err error) {
			p.takeBill(b, a, err)
			done()
		})
	})
}

// billJSON is a record of GET /v2/billing/serverless or /v2/billing/pods; amounts are USD.
type billJSON struct {
	Start      string `json:"startTime"`
	Serverless string `json:"serverlessId"`
	Pod        string `json:"podId"`
	Total      number `json:"totalAmount"`
	GPU        number `json:"gpuAmount"`
	CPU        number `json:"cpuAmount"`
}

// takeBill adds an answer's records to b. Those that cannot be read are counted.
func (p *Provider) takeBill(b *bill, a *api.Answer, err error) {
	var entries []json.RawMessage
	if err == nil {
		if entries, err = list(a, "records", recordsOf); err != nil {
			p.odd("billing: no records in the answer")
		}
	}
	if b.err = err; err != nil {
		return
	}
	for _, raw := range entries {
		var j billJSON
		err := p.decode(raw, &j, "billing")
		hour, terr := time.Parse(time.RFC3339, j.Start)
		if err != nil || terr != nil || j.Serverless == "" && j.Pod == "" || !j.Total.set && !j.GPU.set {
			p.odd("billing: a record that cannot be read")
			continue
		}
		p.numbers("billing", j.Total, j.GPU, j.CPU)
		r := billRecord{id: j.Serverless, hour: hour, usd: j.Total.v}
		switch {
		case r.id == "": // a pod's cost has its disk in it
			r.id = podPrefix + j.Pod
		case j.GPU.set: // a worker's price has neither disk nor fees in it
			r.usd, r.other = j.GPU.v+j.CPU.v, max(j.Total.v-j.GPU.v-j.CPU.v, 0)
		}
		b.records = append(b.records, r)
	}
}

// compare sets the bill against the book, for each hour that a thing was watched from begin to end.
func (p *Provider) compare(b *bill, now time.Time) api.Bill {
	type cell struct {
		id   string
		hour int64
	}
	billed := make(map[cell]billRecord, len(b.records))
	for _, r := range b.records {
		c := cell{r.id, r.hour.Unix()}
		sum := billed[c]
		billed[c] = billRecord{r.id, r.hour, sum.usd + r.usd, sum.other + r.other}
	}
	out := api.Bill{From: b.to, To: b.to}
	known := map[string]bool{}
	for _, id := range p.audit.Book.Things(now) {
		var usd, expected float64
		seen := false
		for hour := b.from; hour.Before(b.to); hour = hour.Add(time.Hour) {
			want, ok := p.audit.Book.Between(id, hour, hour.Add(time.Hour))
			if !ok {
				continue
			}
			r := billed[cell{id, hour.Unix()}]
			usd, expected, seen = usd+r.usd, expected+want, true
			out.Parts = append(out.Parts, api.BillPart{Endpoint: endpoint.ID(provider + ":" + id), From: hour, To: hour.Add(time.Hour), USD: r.usd})
			out.OtherUSD += r.other
			out.From = earlier(out.From, hour)
		}
		if known[id] = seen; seen {
			out.Take(id, usd, expected)
		}
	}
	for id := range p.services {
		if !known[id] {
			out.LeftOut++
		}
	}
	for id := range p.pods {
		if !known[podPrefix+id] {
			out.LeftOut++
		}
	}
	return out
}
