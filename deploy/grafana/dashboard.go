// Package grafana draws Headrace's dashboards. The JSON beside it is made from this code (go test ./deploy/grafana -update), so that
// every query can be held to the table of instruments.
package grafana

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Dashboard is a page of Grafana, as its JSON has it. Titles of variables and panels are what operators read.
type Dashboard struct {
	UID           string     `json:"uid"`
	Title         string     `json:"title"`
	Description   string     `json:"description"`
	Tags          []string   `json:"tags"`
	SchemaVersion int        `json:"schemaVersion"`
	Editable      bool       `json:"editable"`
	GraphTooltip  int        `json:"graphTooltip"` // 1: the cross hair is in all panels
	Refresh       string     `json:"refresh"`
	Time          Range      `json:"time"`
	Templating    Templating `json:"templating"`
	Annotations   struct {
		List []any `json:"list,omitempty"`
	} `json:"annotations"`
	Links  []Link  `json:"links"`
	Panels []Panel `json:"panels"`
}

// Range is the time that a page shows at first.
type Range struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Templating holds the variables at the top of a page.
type Templating struct {
	List []Variable `json:"list"`
}

// Variable is a choice at the top of a page: $Name in queries.
type Variable struct {
	Name       string         `json:"name"`
	Label      string         `json:"label"`
	Type       string         `json:"type"` // "datasource" or "query"
	Query      string         `json:"query"`
	Datasource *Datasource    `json:"datasource,omitempty"`
	Refresh    int            `json:"refresh"` // 2: when the time changes
	Sort       int            `json:"sort"`
	Multi      bool           `json:"multi"`
	IncludeAll bool           `json:"includeAll"`
	AllValue   string         `json:"allValue,omitempty"`
	Current    map[string]any `json:"current,omitempty"`
}

// Link is a way to other pages.
type Link struct {
	Title       string   `json:"title"`
	Type        string   `json:"type"`
	Icon        string   `json:"icon"`
	Tooltip     string   `json:"tooltip"`
	TargetBlank bool     `json:"targetBlank"`
	Tags        []string `json:"tags"`
	AsDropdown  bool     `json:"asDropdown"`
	IncludeVars bool     `json:"includeVars"`
	KeepTime    bool     `json:"keepTime"`
}

// Datasource says who answers a query.
type Datasource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// Panel is one picture, or the heading of a row.
type Panel struct {
	ID              int              `json:"id"`
	Type            string           `json:"type"`
	Title           string           `json:"title"`
	Description     string           `json:"description,omitempty"`
	GridPos         Grid             `json:"gridPos"`
	Datasource      *Datasource      `json:"datasource,omitempty"`
	Targets         []Target         `json:"targets,omitempty"`
	FieldConfig     *Fields          `json:"fieldConfig,omitempty"`
	Options         map[string]any   `json:"options,omitempty"`
	Transformations []Transformation `json:"transformations,omitempty"`
	Collapsed       *bool            `json:"collapsed,omitempty"`
	Panels          *[]Panel         `json:"panels,omitempty"` // of a row that is folded up; rows have it, panels have not
}

// Grid is a panel's place, of 24 columns.
type Grid struct {
	H int `json:"h"`
	W int `json:"w"`
	X int `json:"x"`
	Y int `json:"y"`
}

// Target is one query.
type Target struct {
	RefID        string `json:"refId"`
	Expr         string `json:"expr"`
	LegendFormat string `json:"legendFormat,omitempty"`
	Instant      bool   `json:"instant,omitempty"`
	Range        bool   `json:"range"`
	Format       string `json:"format,omitempty"`
	Exemplar     bool   `json:"exemplar,omitempty"`
}

// Fields is how figures are written and drawn.
type Fields struct {
	Defaults  map[string]any   `json:"defaults"`
	Overrides []map[string]any `json:"overrides"`
}

// Transformation rearranges answers before they are drawn.
type Transformation struct {
	ID      string         `json:"id"`
	Options map[string]any `json:"options"`
}

// source is the data source chosen at the top of the page.
func source() *Datasource { return &Datasource{"prometheus", "${datasource}"} }

// query is a Target to be: what is asked, and what the answer's lines are called.
type query struct{ expr, legend string }

func targets(qs []query) []Target {
	ts := make([]Target, len(qs))
	for i, q := range qs {
		ts[i] = Target{RefID: string(rune('A' + i)), Expr: q.expr, LegendFormat: q.legend, Range: true}
	}
	return ts
}

// lines draws figures over time.
func lines(title, unit, description string, qs ...query) Panel {
	return Panel{
		Type: "timeseries", Title: title, Description: description, Datasource: source(), Targets: targets(qs), GridPos: Grid{H: 8, W: 8},
		FieldConfig: &Fields{
			Defaults: map[string]any{
				"unit": unit, "min": 0,
				"custom": map[string]any{"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": false},
			},
			Overrides: []map[string]any{},
		},
		Options: map[string]any{
			"legend":  map[string]any{"displayMode": "table", "placement": "bottom", "calcs": []string{"lastNotNull", "max"}, "showLegend": true},
			"tooltip": map[string]any{"mode": "multi", "sort": "desc"},
		},
	}
}

// stacked is lines whose heights add up.
func stacked(title, unit, description string, qs ...query) Panel {
	p := lines(title, unit, description, qs...)
	c, _ := p.FieldConfig.Defaults["custom"].(map[string]any)
	c["fillOpacity"], c["stacking"] = 40, map[string]any{"mode": "normal", "group": "A"}
	return p
}

// exemplars lets dots in the picture lead to traces.
func (p Panel) exemplars() Panel {
	for i := range p.Targets {
		p.Targets[i].Exemplar = true
	}
	return p
}

// logarithmic draws what lies orders of magnitude apart.
func (p Panel) logarithmic() Panel {
	c, _ := p.FieldConfig.Defaults["custom"].(map[string]any)
	c["scaleDistribution"] = map[string]any{"type": "log", "log": 10}
	delete(p.FieldConfig.Defaults, "min")
	return p
}

// belowZero draws what may be negative.
func (p Panel) belowZero() Panel { delete(p.FieldConfig.Defaults, "min"); return p }

// named calls the first query's answers by a legend.
func (p Panel) named(legend string) Panel {
	p.Targets[0].LegendFormat = legend
	p.Options["textMode"] = "name"
	return p
}

func (p Panel) wide(columns int) Panel { p.GridPos.W = columns; return p }

// step is a colour from a value on.
type step struct {
	from  float64
	color string
}

// figure is one number. Its colour is green, or that of the last step whose from it reaches.
func figure(title, unit, description, expr string, steps ...step) Panel {
	list := []map[string]any{{"color": "green", "value": nil}}
	for _, s := range steps {
		list = append(list, map[string]any{"color": s.color, "value": s.from})
	}
	return Panel{
		Type: "stat", Title: title, Description: description, Datasource: source(), Targets: targets([]query{{expr, ""}}), GridPos: Grid{H: 4, W: 4},
		FieldConfig: &Fields{
			Defaults:  map[string]any{"unit": unit, "thresholds": map[string]any{"mode": "absolute", "steps": list}, "noValue": "none"},
			Overrides: []map[string]any{},
		},
		Options: map[string]any{
			"reduceOptions": map[string]any{"calcs": []string{"lastNotNull"}, "fields": "", "values": false},
			"colorMode":     "value", "graphMode": "area", "textMode": "auto", "justifyMode": "auto", "orientation": "auto",
			"wideLayout": true, "showPercentChange": false, "percentChangeColorMode": "standard",
		},
	}
}

// heat draws a histogram over time; expr keeps the label le.
func heat(title, unit, description, expr string) Panel {
	p := Panel{
		Type: "heatmap", Title: title, Description: description, Datasource: source(), Targets: targets([]query{{expr, "{{le}}"}}), GridPos: Grid{H: 8, W: 8},
		FieldConfig: &Fields{Defaults: map[string]any{}, Overrides: []map[string]any{}},
		Options: map[string]any{
			"calculate": false, "showValue": "never", "legend": map[string]any{"show": true}, "yAxis": map[string]any{"unit": unit},
			"color":     map[string]any{"mode": "scheme", "scheme": "Oranges", "steps": 64, "fill": "dark-orange", "exponent": 0.5, "reverse": false},
			"exemplars": map[string]any{"color": "rgba(0,128,255,0.9)"},
			"tooltip":   map[string]any{"mode": "single", "yHistogram": true},
		},
	}
	p.Targets[0].Format = "heatmap"
	return p
}

// bands shows over time which of several states something was in: the lines that are 1.
func bands(title, description string, qs ...query) Panel {
	return Panel{
		Type: "state-timeline", Title: title, Description: description, Datasource: source(), Targets: targets(qs), GridPos: Grid{H: 8, W: 12},
		FieldConfig: &Fields{
			Defaults: map[string]any{
				"custom":   map[string]any{"fillOpacity": 70, "lineWidth": 0},
				"mappings": []map[string]any{{"type": "value", "options": map[string]any{"0": map[string]any{"text": " ", "color": "transparent"}, "1": map[string]any{"text": "yes", "color": "blue"}}}},
			},
			Overrides: []map[string]any{},
		},
		Options: map[string]any{
			"mergeValues": true, "showValue": "never", "rowHeight": 0.8,
			"legend":  map[string]any{"displayMode": "list", "placement": "bottom", "calcs": []string{}, "showLegend": false},
			"tooltip": map[string]any{"mode": "single", "sort": "none"},
		},
	}
}

// column is a figure of each line of a table.
type column struct{ title, unit, expr string }

// table has a line for each set of values of labels (name in Prometheus, then title), and a column for each figure. link, of the
// first label, may hold ${__value.raw}.
func table(title, description string, labels [][2]string, link string, cols ...column) Panel {
	p := Panel{
		Type: "table", Title: title, Description: description, Datasource: source(), GridPos: Grid{H: 10, W: 24},
		FieldConfig: &Fields{Defaults: map[string]any{"custom": map[string]any{"align": "auto", "filterable": true, "inspect": false}}},
		Options:     map[string]any{"showHeader": true, "cellHeight": "sm", "frameIndex": 0},
	}
	names, hidden, order := map[string]any{}, map[string]any{"Time": true}, map[string]any{}
	for i, l := range labels {
		names[l[0]], order[l[0]] = l[1], i
	}
	if link != "" {
		p.FieldConfig.Overrides = append(p.FieldConfig.Overrides, override(labels[0][1], "links", []map[string]any{{"title": "look closer", "url": link}}))
	}
	for i, c := range cols {
		ref := string(rune('A' + i))
		p.Targets = append(p.Targets, Target{RefID: ref, Expr: c.expr, Instant: true, Format: "table"})
		names["Value #"+ref], order["Value #"+ref] = c.title, len(labels)+i
		p.FieldConfig.Overrides = append(p.FieldConfig.Overrides, override(c.title, "unit", c.unit))
	}
	p.Transformations = []Transformation{
		{"merge", map[string]any{}},
		{"organize", map[string]any{"excludeByName": hidden, "indexByName": order, "renameByName": names}},
	}
	return p
}

func override(field, property string, value any) map[string]any {
	return map[string]any{
		"matcher":    map[string]any{"id": "byName", "options": field},
		"properties": []map[string]any{{"id": property, "value": value}},
	}
}

// section is a row of panels under a heading.
type section struct {
	title  string
	panels []Panel
}

// arrange puts the sections' panels beside and below each other and numbers them.
func arrange(sections []section) []Panel {
	var out []Panel
	y, open := 0, false
	for _, s := range sections {
		out = append(out, Panel{ID: len(out) + 1, Type: "row", Title: s.title, GridPos: Grid{H: 1, W: 24, Y: y}, Collapsed: &open, Panels: &[]Panel{}})
		y++
		x, height := 0, 0
		for _, p := range s.panels {
			if x+p.GridPos.W > 24 {
				x, y, height = 0, y+height, 0
			}
			p.ID, p.GridPos.X, p.GridPos.Y = len(out)+1, x, y
			out = append(out, p)
			x, height = x+p.GridPos.W, max(height, p.GridPos.H)
		}
		y += height
	}
	return out
}

// choice is a variable whose values are those of a label.
func choice(name, title, metric, label string, all bool) Variable {
	v := Variable{
		Name: name, Label: title, Type: "query", Query: fmt.Sprintf("label_values(%s, %s)", metric, label),
		Datasource: source(), Refresh: 2, Sort: 1, Multi: all, IncludeAll: all,
	}
	if all {
		v.AllValue = ".*"
		v.Current = map[string]any{"text": []string{"All"}, "value": []string{"$__all"}}
	}
	return v
}

func dashboard(uid, title, description, from string, choices []Variable, sections ...section) Dashboard {
	list := append([]Variable{{Name: "datasource", Label: "Prometheus", Type: "datasource", Query: "prometheus", Refresh: 1}}, choices...)
	return Dashboard{
		UID: "headrace-" + uid, Title: "Headrace: " + title, Description: description, Tags: []string{"headrace"},
		SchemaVersion: 39, GraphTooltip: 1, Refresh: "30s", Time: Range{"now-" + from, "now"},
		Templating: Templating{list}, Panels: arrange(sections),
		Links: []Link{{Title: "Headrace", Type: "dashboards", Icon: "external link", Tooltip: "All pages", Tags: []string{"headrace"}, AsDropdown: true, KeepTime: true}},
	}
}

// Encode returns the dashboard as it is imported.
func (d *Dashboard) Encode() ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	err := e.Encode(d)
	return []byte(b.String()), err
}
