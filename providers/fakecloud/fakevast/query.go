package fakevast

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// query is what a list is asked for.
type query struct {
	limit   int
	after   after
	order   []order
	cols    []string // nil for all
	filters map[string]map[string]any
}

// after is the last row that was given, by id and by how many rows there were so far.
type after struct{ id, rows int64 }

type order struct {
	Col string `json:"col"`
	Dir string `json:"dir"`
}

// stored are the columns that instances can be searched by; all others are computed.
var stored = []string{
	"id", "label", "actual_status", "intended_status", "cur_state", "next_state", "gpu_name", "verification", "machine_id",
	"host_id", "is_bid", "image_uuid", "template_id", "template_hash_id", "template_name", "start_date", "end_date",
	"geolocation", "disk_space", "static_ip",
}

// badQuery is a query that is refused with 400.
type badQuery struct{ code, msg string }

func (b *badQuery) Error() string { return b.msg }

func invalidKey(format string, args ...any) error {
	return &badQuery{"invalid_request", "Error in query parameters: " + fmt.Sprintf(format, args...)}
}

func parseQuery(v url.Values, most int, searchable []string) (*query, error) {
	q := &query{limit: most}
	if text := v.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, invalidKey("limit is not an integer")
		}
		if q.limit = min(n, most); n <= 0 {
			q.limit = 5
		}
	}
	if text := v.Get("after_token"); text != "" && text != "null" {
		var err error
		if q.after, err = parseToken(text); err != nil {
			return nil, &badQuery{code: "invalid_token"}
		}
	}
	for name, into := range map[string]any{"order_by": &q.order, "select_cols": &q.cols, "select_filters": &q.filters} {
		if text := v.Get(name); text != "" {
			if err := json.Unmarshal([]byte(text), into); err != nil {
				return nil, invalidKey("%s is not valid JSON", name)
			}
		}
	}
	if slices.Contains(q.cols, "*") {
		q.cols = nil
	}
	for _, o := range q.order {
		if !slices.Contains(searchable, o.Col) {
			return nil, invalidKey("%s is not a valid sort key", o.Col)
		}
	}
	for col, ops := range q.filters {
		if !slices.Contains(searchable, col) {
			return nil, invalidKey("%s is not a valid search key", col)
		}
		for op := range ops {
			if !slices.Contains(operators, op) {
				return nil, invalidKey("%s is not a valid operator", op)
			}
		}
	}
	return q, nil
}

var operators = []string{"eq", "neq", "gt", "gte", "lt", "lte", "in", "notin"}

func token(a after) string {
	return base64.RawURLEncoding.EncodeToString([]byte("after:" + itoa(a.id) + ":" + itoa(a.rows)))
}

func parseToken(text string) (a after, err error) {
	b, err := base64.RawURLEncoding.DecodeString(strings.Trim(text, `"`))
	if err != nil {
		return a, err
	}
	_, err = fmt.Sscanf(string(b), "after:%d:%d", &a.id, &a.rows)
	return a, err
}

// position is where rows go on after a: behind the row of that id, wherever it is now.
func (a after) position(rows []map[string]any, byID bool) int {
	if a.rows == 0 {
		return 0
	}
	at := slices.IndexFunc(rows, func(r map[string]any) bool {
		id, _ := r["id"].(int64)
		return id == a.id || byID && id > a.id
	})
	switch {
	case at < 0 && byID:
		return len(rows)
	case at < 0:
		return min(int(a.rows), len(rows))
	case rows[at]["id"] == a.id:
		return at + 1
	}
	return at
}

// matches tells whether row passes all filters.
func matches(row map[string]any, filters map[string]map[string]any) bool {
	for col, ops := range filters {
		for op, want := range ops {
			if !holds(row[col], op, want) {
				return false
			}
		}
	}
	return true
}

func holds(got any, op string, want any) bool {
	switch op {
	case "eq":
		return equal(got, want)
	case "neq":
		return !equal(got, want)
	case "in", "notin":
		list, _ := want.([]any)
		return slices.ContainsFunc(list, func(w any) bool { return equal(got, w) }) == (op == "in")
	}
	n, ok := compare(got, want)
	if !ok {
		return false
	}
	switch op {
	case "gt":
		return n > 0
	case "gte":
		return n >= 0
	case "lt":
		return n < 0
	case "lte":
		return n <= 0
	}
	return false
}

func equal(a, b any) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	if x, ok := a.(bool); ok {
		y, ok := b.(bool)
		return ok && x == y
	}
	n, ok := compare(a, b)
	return ok && n == 0
}

// compare orders two numbers or two strings; ok is false for anything else.
func compare(a, b any) (n int, ok bool) {
	if x, ok := number(a); ok {
		y, ok := number(b)
		if text, isText := b.(string); isText { // the vendor's client sends what was typed
			var err error
			y, err = strconv.ParseFloat(text, 64)
			ok = err == nil
		}
		return cmp.Compare(x, y), ok
	}
	x, okX := a.(string)
	y, okY := b.(string)
	return strings.Compare(x, y), okX && okY
}

func number(v any) (float64, bool) {
	switch v := v.(type) {
	case float64:
		return v, true
	case int:
		return float64(v), true
	case int64:
		return float64(v), true
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	}
	return 0, false
}

// sortRows orders rows as asked.
func sortRows(rows []map[string]any, by []order) {
	slices.SortStableFunc(rows, func(a, b map[string]any) int {
		for _, o := range by {
			n, _ := compare(a[o.Col], b[o.Col])
			if strings.EqualFold(o.Dir, "desc") {
				n = -n
			}
			if n != 0 {
				return n
			}
		}
		return 0
	})
}

// project keeps the columns that were asked for; those that nobody knows are null.
func project(row map[string]any, cols []string) map[string]any {
	if cols == nil {
		return row
	}
	out := make(map[string]any, len(cols))
	for _, c := range cols {
		out[c] = row[c]
	}
	return out
}

// listInstances is GET /api/v1/instances/.
func (c *Cloud) listInstances(a *asked) {
	q, err := parseQuery(a.r.URL.Query(), 25, stored)
	if err != nil {
		refuseQuery(a, err)
		return
	}
	c.mu.Lock()
	all := c.all()
	var rows []map[string]any
	labels := map[string]int{}
	shown := map[int64]*Instance{}
	now := c.cfg.Now()
	for _, i := range all {
		keys := i.keys()
		if !matches(keys, q.filters) {
			continue
		}
		labels[i.cfg.Label]++
		rows = append(rows, keys)
		shown[i.cfg.ID] = i
	}
	sortRows(rows, q.order)
	found := len(rows)
	start := q.after.position(rows, len(q.order) == 0 || q.order[0] == order{"id", "asc"})
	end := min(start+q.limit, found)
	page := []any{}
	for _, keys := range rows[start:end] {
		id, _ := keys["id"].(int64)
		i := shown[id]
		page = append(page, i.dress(project(i.row(now, true), q.cols)))
	}
	c.mu.Unlock()
	answer := map[string]any{
		"success": true, "instances_found": found, "total_instances": len(all), "label_counts": labels, "instances": page,
		"next_token": nil,
	}
	if len(page) == 0 && c.cfg.Hazards&NullInstances != 0 {
		answer["instances"] = nil
	}
	if end < found {
		last, _ := rows[end-1]["id"].(int64)
		answer["next_token"] = token(after{last, int64(end)})
	}
	a.json(answer)
}

// instanceFilters is GET /api/v0/instances/filters/: what there is to filter the list by, each combination once. Of its rows
// the members that the vendor's client reads are known.
func (c *Cloud) instanceFilters(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows := []map[string]any{}
	for _, i := range c.all() {
		row := project(i.keys(), []string{"actual_status", "gpu_name", "verification"})
		if !slices.ContainsFunc(rows, func(r map[string]any) bool { return maps.Equal(r, row) }) {
			rows = append(rows, row)
		}
	}
	a.json(map[string]any{"success": true, "filters": rows})
}

func refuseQuery(a *asked, err error) {
	b, ok := err.(*badQuery) //nolint:errorlint // parseQuery returns no other
	if !ok {
		panic("BUG: " + err.Error())
	}
	if b.msg == "" {
		writeJSON(a.w, http.StatusBadRequest, map[string]any{"error": b.code})
		return
	}
	a.fail(http.StatusBadRequest, b.code, b.msg)
}

func (c *Cloud) retiredList(a *asked) {
	a.fail(http.StatusGone, "deprecated_endpoint", "/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead.")
}

// oneInstance is GET /api/v0/instances/{id}/.
func (c *Cloud) oneInstance(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.instances[a.id]
	if i == nil {
		a.json(map[string]any{"instances": nil})
		return
	}
	row := i.dress(i.row(c.cfg.Now(), false))
	if i.has(ByIDArray) {
		a.json(map[string]any{"instances": []any{row}})
		return
	}
	a.json(map[string]any{"instances": row})
}
