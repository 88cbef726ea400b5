package vast

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// listing is the account's instances as they were read.
type listing struct {
	Pages []page        `json:"pages"`
	Skew  time.Duration `json:"skew"`
}

func (l *listing) rows() (n int) {
	for i := range l.Pages {
		n += len(l.Pages[i].Rows)
	}
	return n
}

// foreign puts the times of a list that another replica has read right: that one's clock is not ours, and rows that seem older
// than what is known are not believed. When it came, the list was at most within old, and reading it took a while before that.
func (l *listing) foreign(now time.Time, within time.Duration) {
	oldest := now.Add(-within)
	if n := len(l.Pages); n > 0 {
		oldest = oldest.Add(-max(0, l.Pages[n-1].Asked.Sub(l.Pages[0].Asked)))
	}
	for i := range l.Pages {
		switch at := &l.Pages[i].Asked; {
		case at.After(now):
			*at = now
		case at.Before(oldest):
			*at = oldest
		}
	}
}

// page is one page of it. Rows are as the API wrote them.
type page struct {
	Asked time.Time         `json:"asked"`
	Rows  []json.RawMessage `json:"rows"`
}

const (
	pageSize   = 25  // the API's default and most
	maxPages   = 400 // 10,000 instances; more is a list that goes in circles
	maxInQuery = 100 // ids or labels that are sent as a filter; more would make the URL too long for some proxy
)

// list reads all pages, or fails: half a fleet is none.
func (p *Provider) list(ctx context.Context) (*listing, error) {
	l, err := p.pages(ctx, p.filters())
	if e, ok := errors.AsType[*api.Error](err); ok && e.Status == http.StatusBadRequest && e.Code != "invalid_token" && p.simplify() {
		p.odd("list refused columns or filters")
		p.log.Warn("Vast.ai refuses the columns or filters of a list, which is read whole from now on", "error", err)
		l, err = p.pages(ctx, nil)
	}
	return l, err
}

// simplify notes that the API takes neither columns nor filters; false when that was known.
func (p *Provider) simplify() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.simple
	p.simple = true
	return !was
}

func (p *Provider) isSimple() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.simple
}

// filters are those that the API applies. All are applied again to what it returns.
func (p *Provider) filters() map[string]any {
	f := map[string]any{}
	if n := len(p.opt.Labels); n > 0 && n <= maxInQuery {
		in := make([]any, n)
		for i, l := range p.opt.Labels {
			if l != "" { // null stands for no label
				in[i] = l
			}
		}
		f["label"] = map[string]any{"in": in}
	}
	if n := len(p.opt.IDs); n > 0 && n <= maxInQuery {
		f["id"] = map[string]any{"in": p.opt.IDs}
	}
	return f
}

// reply is what all lists answer with.
type reply struct {
	success    truth
	error, msg text
	total      number
	token      []byte // next_token as written
	items      []byte // instances as written, nil without such a member
}

func parseReply(body []byte) (r reply, ok bool) {
	return r, members(body, func(key, v []byte) {
		switch string(key) {
		case "success":
			r.success.read(v)
		case "error":
			r.error.read(v)
		case "msg":
			r.msg.read(v)
		case "total_instances":
			r.total.read(v)
		case "next_token":
			r.token = v
		case "instances":
			r.items = v
		}
	})
}

// nextPage reads next_token: the token of the next page, "" behind the last one.
func nextPage(raw []byte) (string, error) {
	var token text
	if token.read(raw); token == "" && len(raw) > 0 && string(raw) != "null" && string(raw) != `""` {
		return "", errors.New("the list goes on with a token that is none") // half a list must not pass for all
	}
	return string(token), nil
}

func (p *Provider) pages(ctx context.Context, filters map[string]any) (*listing, error) {
	q := url.Values{"limit": {strconv.Itoa(pageSize)}, "order_by": {`[{"col":"id","dir":"asc"}]`}}
	if !p.isSimple() {
		q.Set("select_cols", asJSON(columns))
		if len(filters) > 0 {
			q.Set("select_filters", asJSON(filters))
		}
	}
	l := &listing{}
	rows := 0
	for range maxPages {
		asked := p.now()
		a, err := p.client.Do(ctx, api.Call{
			Name: "GET /api/v1/instances/", URL: p.opt.ConsoleURL + "/api/v1/instances/?" + q.Encode(), MinInterval: p.paced(listEvery),
		})
		if err != nil {
			return nil, p.explain(err)
		}
		if !a.Date.IsZero() { // Date has whole seconds
			l.Skew = a.Date.Add(500 * time.Millisecond).Sub(a.At).Round(time.Second)
		}
		r, list, err := parsePage(a)
		if err != nil {
			return nil, err
		}
		next, err := nextPage(r.token)
		if err != nil {
			return nil, err
		}
		l.Pages = append(l.Pages, page{asked, list})
		if rows += len(list); next == "" {
			if q.Has("select_filters") || !r.total.set { // sources differ on whether filters count in the total
				return l, nil
			}
			if rows == 0 && r.total.v > 0 {
				return nil, fmt.Errorf("the list says that there are %.0f instances, and names none", r.total.v)
			}
			if int(r.total.v) != rows {
				p.odd("list whose total_instances is another") // or one was rented meanwhile
			}
			return l, nil
		}
		if q.Get("after_token") == next {
			break
		}
		q.Set("after_token", next)
	}
	return nil, errors.New("the list of instances never ends")
}

// parsePage reads one page. "instances": null is an empty one; no such member is a reply that means something else.
func parsePage(a *api.Answer) (*reply, []json.RawMessage, error) {
	r, ok := parseReply(a.Body)
	var list []json.RawMessage
	switch {
	case !ok:
		return nil, nil, errors.New("the list of instances is no JSON object, or breaks off")
	case r.success.set && !r.success.yes:
		return nil, nil, fmt.Errorf("the list of instances failed with status %d: %s %s", a.Status, clip(string(r.error), 64), clip(string(r.msg), 200))
	case string(r.items) == "null" && r.success.set:
		return &r, nil, nil
	case !elements(r.items, func(v []byte) { list = append(list, v) }):
		return nil, nil, errors.New("the list of instances has no instances in it")
	}
	return &r, list, nil
}

func asJSON(v any) string {
	b, _ := json.Marshal(v) // words and numbers only
	return string(b)
}

// explain names what an error of the control plane means where its status misleads.
func (p *Provider) explain(err error) error {
	e, ok := errors.AsType[*api.Error](err)
	switch {
	case !ok:
		return err
	case e.Denied(): // also as 404 with auth_error, which is no empty account
		return fmt.Errorf("the key is refused, or lacks the permission instance_read: %w", err)
	case e.Status == http.StatusGone:
		return fmt.Errorf("this call is retired; Headrace needs an update: %w", err)
	}
	return err
}

const sealedAs = "headrace shared list of vast instances"

// shared reads the list, through the Share if there is one. within is how old an answer may be.
func (p *Provider) shared(ctx context.Context, within time.Duration) (*listing, error) {
	if p.opt.Share == nil {
		return p.list(ctx)
	}
	var mine *listing
	b, err := p.opt.Share.Poll(ctx, p.account("instances"), within, func(ctx context.Context) ([]byte, error) {
		l, err := p.list(ctx)
		if err != nil {
			return nil, err
		}
		mine = l
		plain, err := json.Marshal(l)
		if err != nil {
			return nil, err
		}
		return api.Seal(p.opt.Key, sealedAs, plain)
	})
	if err != nil || mine != nil {
		return mine, err
	}
	plain, err := api.Open(p.opt.Key, sealedAs, b)
	if err != nil {
		return nil, fmt.Errorf("the list that another replica read cannot be used: %w", err)
	}
	l := &listing{}
	if json.Unmarshal(plain, l) != nil {
		return nil, errors.New("the list that another replica read is no list")
	}
	l.foreign(p.now(), within)
	return l, nil
}

// some reads up to a page of instances by id, with the list's own call: one for all of them.
func (p *Provider) some(ctx context.Context, ids []int64) (*listing, error) {
	return p.pages(ctx, map[string]any{"id": map[string]any{"in": ids}})
}

// one reads an instance by id; nil when the account has none of that id.
func (p *Provider) one(ctx context.Context, id int64) (*row, error) {
	a, err := p.client.Do(ctx, api.Call{
		Name: "GET /api/v0/instances/{id}/", URL: p.opt.ConsoleURL + "/api/v0/instances/" + strconv.FormatInt(id, 10) + "/",
		MinInterval: p.paced(readEvery),
	})
	if err != nil {
		return nil, p.explain(err)
	}
	r, ok := parseReply(a.Body)
	if !ok || r.success.set && !r.success.yes || r.items == nil {
		return nil, errors.New("an instance's own reply is no instance")
	}
	raw, empty := r.items, string(r.items) == "null"
	if elements(raw, func(v []byte) { raw = v }) { // it comes as a list of one as well
		empty = string(raw) == string(r.items)
	}
	if empty {
		return nil, nil //nolint:nilnil // the account has none of that id
	}
	return parseRow(raw)
}

// vastRoot returns Vast.ai's root certificate, which is fetched once.
func (p *Provider) vastRoot(ctx context.Context) (string, error) {
	p.rootMu.Lock()
	defer p.rootMu.Unlock()
	if p.root != "" {
		return p.root, nil
	}
	a, err := p.client.Do(ctx, api.Call{
		Name: "GET /static/jvastai_root.cer", URL: p.opt.ConsoleURL + "/static/jvastai_root.cer", MinInterval: p.paced(listEvery),
	})
	if err != nil {
		return "", err
	}
	text := string(a.Body)
	if b, _ := pem.Decode(a.Body); b == nil { // .cer is DER or PEM
		text = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Body}))
	}
	if _, err := (endpoint.TLS{Roots: text}).Config(""); err != nil {
		return "", err
	}
	p.root = text
	return text, nil
}
