package vast

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// Charge is what Vast.ai billed for one instance.
type Charge struct {
	ID       endpoint.ID
	From, To time.Time // zero where the bill does not say
	USD      float64   // of all items together, as billed
	Items    []ChargeItem
}

// ChargeItem is one line of a Charge.
type ChargeItem struct {
	Kind string // gpu, disk, bwd (traffic in), bwu (traffic out) or sla
	USD  float64
	Text string // "96.000 hours at $0.389/hour"
}

// Charges returns what was billed for instances between two times, for reconciliation: days, not minutes. It needs the permission
// billing_read.
func (p *Provider) Charges(ctx context.Context, from, to time.Time) ([]Charge, error) {
	q := url.Values{"format": {"table"}, "limit": {"500"}, "select_filters": {asJSON(map[string]any{
		"day": map[string]int64{"gte": from.Unix(), "lte": to.Unix()}, "type": map[string][]string{"in": {"instance"}},
	})}}
	type item struct {
		Type   text    `json:"type"`
		Source text    `json:"source"`
		Amount number  `json:"amount"`
		Text   text    `json:"description"`
		Start  number  `json:"start"`
		End    number  `json:"end"`
		Items  []*item `json:"items"`
	}
	var out []Charge
	for range maxPages {
		a, err := p.client.Do(ctx, api.Call{
			Name: "GET /api/v0/charges/", URL: p.opt.ConsoleURL + "/api/v0/charges/?" + q.Encode(), MinInterval: p.paced(billEvery),
		})
		if err != nil {
			if e, ok := errors.AsType[*api.Error](err); ok && e.Status == http.StatusForbidden {
				return nil, fmt.Errorf("the key lacks the permission billing_read: %w", err)
			}
			return nil, p.explain(err)
		}
		var r struct {
			Success *bool           `json:"success"`
			Msg     text            `json:"msg"`
			Next    json.RawMessage `json:"next_token"`
			Results *[]item         `json:"results"`
		}
		if a.JSON(&r) != nil || r.Success != nil && !*r.Success || r.Results == nil {
			return nil, errors.New("the reply has no charges in it: " + clip(string(r.Msg), 200))
		}
		for _, it := range *r.Results {
			n, ok := strings.CutPrefix(string(it.Source), "instance-")
			id, err := strconv.ParseInt(n, 10, 64)
			if !ok || err != nil {
				p.odd("charge of something else than an instance")
				continue
			}
			c := Charge{ID: endpointID(id), From: it.Start.time(), To: it.End.time(), USD: it.Amount.v}
			for _, l := range it.Items {
				if l != nil {
					c.Items = append(c.Items, ChargeItem{Kind: string(l.Type), USD: l.Amount.v, Text: string(l.Text)})
				}
			}
			out = append(out, c)
		}
		next, err := nextPage(r.Next)
		if err != nil || next == "" {
			return out, err
		}
		q.Set("after_token", next)
	}
	return nil, errors.New("the list of charges never ends")
}
