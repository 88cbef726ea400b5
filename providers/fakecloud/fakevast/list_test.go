package fakevast_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakevast"
)

func list(c *fakevast.Cloud, params ...string) string {
	v := url.Values{}
	for i := 0; i < len(params); i += 2 {
		v.Set(params[i], params[i+1])
	}
	return c.ConsoleURL() + "/api/v1/instances/?" + v.Encode()
}

func ids(a *answer) string {
	var out []string
	rows, _ := a.v["instances"].([]any)
	for _, r := range rows {
		m, _ := r.(map[string]any)
		out = append(out, fmt.Sprint(m["id"]))
	}
	return strings.Join(out, " ")
}

func TestKeys(t *testing.T) {
	c := start(t, fakevast.Config{})
	strict := start(t, fakevast.Config{KeyStatus: 401})
	for name, tc := range map[string]struct {
		url, key string
		status   int
		want     string
	}{
		"no header":            {c.ConsoleURL(), "", 403, `{"error":"auth_error","msg":"This action requires login.","success":false}`},
		"unknown key":          {c.ConsoleURL(), "Bearer x", 404, `{"error":"auth_error","msg":"Invalid user key","success":false}`},
		"unknown key, by knob": {strict.ConsoleURL(), "Bearer x", 401, `{"error":"auth_error","msg":"Invalid user key","success":false}`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/api/v1/instances/", "/api/v0/instances/1/", "/api/v0/users/current/", "/api/v0/charges/", "/api/v0/endptjobs/"} {
				if a := call(t, "GET", tc.url+path, "", "Authorization", tc.key); a.status != tc.status || a.body != tc.want {
					t.Errorf("%s: %d %s", path, a.status, a.body)
				}
			}
		})
	}
	if a := call(t, "GET", c.ConsoleURL()+"/api/v0/users/current?api_key=vast-key", "", "Authorization", ""); a.status != 200 || a.v["credit"] == nil {
		t.Errorf("key in the query: %d %s", a.status, a.body)
	}
	if a := call(t, "POST", c.ConsoleURL()+"/api/v0/bundles/", `{}`, "Authorization", ""); a.status != 200 {
		t.Errorf("a search needs a key: %d", a.status)
	}
}

func TestPages(t *testing.T) {
	c := start(t, fakevast.Config{})
	for i := range 31 {
		c.AddInstance(fakevast.InstanceConfig{ID: int64(100 + i), Label: map[bool]string{true: "gw"}[i%2 == 0]})
	}
	a := call(t, "GET", list(c), "")
	if got := strings.Fields(ids(a)); len(got) != 25 || got[0] != "100" || got[24] != "124" {
		t.Errorf("first page: %v", got)
	}
	if fmt.Sprintln(a.v["instances_found"], a.v["total_instances"], a.v["label_counts"]) != "31 31 map[:15 gw:16]\n" {
		t.Errorf("counts: %v %v %v", a.v["instances_found"], a.v["total_instances"], a.v["label_counts"])
	}
	c.Instance(124).Destroy() // the last one that was given
	a = call(t, "GET", list(c, "after_token", a.str(t, "next_token")), "")
	if got := ids(a); got != "125 126 127 128 129 130" || a.v["next_token"] != nil {
		t.Errorf("second page: %s, then %v", got, a.v["next_token"])
	}
	for name, tc := range map[string]struct {
		url, want string
	}{
		"more than there may be": {list(c, "limit", "100", "select_filters", `{"id":{"lt":103}}`), "100 101 102"},
		"none":                   {list(c, "limit", "0"), "100 101 102 103 104"},
		"less than none":         {list(c, "limit", "-3"), "100 101 102 103 104"},
		"descending":             {list(c, "limit", "2", "order_by", `[{"col":"id","dir":"desc"}]`), "130 129"},
		"by label":               {list(c, "limit", "2", "select_filters", `{"label":{"eq":"gw"}}`), "100 102"},
		"without label":          {list(c, "limit", "2", "select_filters", `{"label":{"in":[null]}}`), "101 103"},
		"in":                     {list(c, "select_filters", `{"id":{"in":[101,"102",7]}}`), "101 102"},
		"notin and gte":          {list(c, "select_filters", `{"id":{"notin":[130],"gte":129}}`), "129"},
		"neq":                    {list(c, "select_filters", `{"label":{"neq":"gw"},"id":{"lte":103}}`), "101 103"},
		"by state":               {list(c, "limit", "1", "select_filters", `{"actual_status":{"eq":"running"}}`), "100"},
		"in no state":            {list(c, "select_filters", `{"actual_status":{"eq":"loading"}}`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if a := call(t, "GET", tc.url, ""); a.status != 200 || ids(a) != tc.want {
				t.Errorf("%d %s %.200s", a.status, ids(a), a.body)
			}
		})
	}
	for name, tc := range map[string]struct {
		url    string
		status int
		want   string
	}{
		"computed column":  {list(c, "select_filters", `{"dph_total":{"lt":1}}`), 400, `{"error":"invalid_request","msg":"Error in query parameters: dph_total is not a valid search key","success":false}`},
		"computed column ": {list(c, "select_filters", `{"num_gpus":{"eq":1}}`), 400, `{"error":"invalid_request","msg":"Error in query parameters: num_gpus is not a valid search key","success":false}`},
		"no JSON":          {list(c, "select_filters", `{"id"`), 400, ""},
		"no operator":      {list(c, "select_filters", `{"id":{"is":1}}`), 400, ""},
		"order":            {list(c, "order_by", `[{"col":"dph_total","dir":"asc"}]`), 400, ""},
		"bad token":        {list(c, "after_token", "zzz"), 400, `{"error":"invalid_token"}`},
		"bad token ":       {list(c, "after_token", "bm9uZQ"), 400, `{"error":"invalid_token"}`},
		"retired":          {c.ConsoleURL() + "/api/v0/instances/", 410, `{"error":"deprecated_endpoint","msg":"/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead.","success":false}`},
		"no such path":     {c.ConsoleURL() + "/api/v0/nothing/", 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if a := call(t, "GET", tc.url, ""); a.status != tc.status || tc.want != "" && a.body != tc.want {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

func TestColumns(t *testing.T) {
	c := start(t, fakevast.Config{})
	i := c.AddInstance(fakevast.InstanceConfig{ID: 7, DPHBase: 0.2, StorageCost: 0.15, DiskGB: 50, UpPerTB: 0.5, DownPerTB: 0.25})
	a := call(t, "GET", list(c, "select_cols", `["id","actual_status","no_such_column","dph_total"]`), "")
	rows, _ := a.v["instances"].([]any)
	if got := fmt.Sprint(rows); got != "[map[actual_status:running dph_total:0.21041666666666667 id:7 no_such_column:<nil>]]" {
		t.Errorf("chosen columns: %s", got)
	}
	r := row(t, c)
	for name := range strings.FieldsSeq(`id machine_id host_id bundle_id label is_bid actual_status intended_status cur_state next_state
		status_msg image_uuid image_runtype image_args onstart extra_env jupyter_token template_id template_hash_id template_name public_ipaddr
		local_ipaddrs static_ip ports direct_port_count direct_port_start direct_port_end ssh_host ssh_idx ssh_port machine_dir_ssh_port
		gpu_name num_gpus gpu_ram gpu_totalram gpu_util gpu_temp gpu_frac dlperf total_flops compute_cap cuda_max_good cpu_cores_effective
		cpu_ram mem_limit mem_usage vmem_usage disk_space disk_usage disk_util inet_up inet_down inet_up_cost inet_down_cost inet_up_billed
		inet_down_billed internet_up_cost_per_tb internet_down_cost_per_tb min_bid dph_base dph_total storage_cost storage_total_cost search
		instance reliability2 verification rentable hosting_type geolocation country_code start_date end_date duration uptime_mins
		time_remaining time_remaining_isbid credit_discount volume_info`) {
		if _, ok := r[name]; !ok {
			t.Errorf("field %s is missing", name)
		}
	}
	if got := fmt.Sprintln(r["extra_env"], r["disk_usage"]); got != "[[-p 8000:8000 1]] 31.2\n" {
		t.Errorf("environment and disk: %s", got)
	}
	i.Outbid(fakevast.ExitedStopped)
	r = row(t, c)
	costs, _ := r["instance"].(map[string]any)
	would, _ := r["search"].(map[string]any)
	if fmt.Sprintln(costs["gpuCostPerHour"], would["gpuCostPerHour"], r["ports"], r["public_ipaddr"], r["disk_usage"]) != "0.0 0.2 <nil> <nil> -1\n" {
		t.Errorf("outbid: %v %v %v %v", costs, would, r["ports"], r["public_ipaddr"])
	}
	if a := call(t, "GET", c.ConsoleURL()+"/api/v0/instances/8/?owner=me", ""); a.status != 200 || a.body != `{"instances":null}` {
		t.Errorf("unknown id: %d %s", a.status, a.body)
	}
	if a := call(t, "GET", c.ConsoleURL()+"/api/v0/instances/7/", ""); !strings.Contains(a.body, `{"instances":{"actual_status":"exited"`) {
		t.Errorf("by id: %.100s", a.body)
	}
}

// TestHazards is sections 2.4 and 8.7: what is odd in rows.
func TestHazards(t *testing.T) {
	c := start(t, fakevast.Config{})
	i := c.AddInstance(fakevast.InstanceConfig{ID: 7, IP: "127.0.0.2"})
	byID := c.ConsoleURL() + "/api/v0/instances/7/"
	_, port, _ := strings.Cut(strings.TrimPrefix(i.URL(), "http://"), ":")
	for name, tc := range map[string]struct {
		hazard   fakevast.Hazard
		list, id string // what the answers hold
	}{
		"clean":                     {0, `"ports":{"8000/tcp":[{"HostIp":"0.0.0.0","HostPort":"` + port + `"}]}`, `"HostPort":"` + port},
		"vast_2.4 trailing newline": {fakevast.IPNewline, `"public_ipaddr":" 127.0.0.2\n"`, `"public_ipaddr":" 127.0.0.2\n"`},
		"IPv6 twin":                 {fakevast.IPv6Twin, `[{"HostIp":"::","HostPort":"` + port + `"},{"HostIp":"0.0.0.0","HostPort":"` + port + `"}]`, `"::"`},
		"IPv6 only":                 {fakevast.IPv6Only, `[{"HostIp":"::","HostPort":"` + port + `"}]`, `"::"`},
		"list of ports":             {fakevast.PortsList, `"ports":[` + port + `]`, `"ports":[` + port + `]`},
		"empty list":                {fakevast.PortsEmptyList, `"ports":[]`, `"ports":[]`},
		"null":                      {fakevast.PortsNull, `"ports":null`, `"ports":null`},
		"null in lists":             {fakevast.ListPortsNull, `"ports":null`, `"ports":{`},
		"list by id":                {fakevast.ByIDPortsList, `"ports":{`, `"ports":[` + port + `]`},
		"list of one":               {fakevast.ByIDArray, `"instances":[{`, `{"instances":[{`},
		"floats as Python has them": {0, `"gpu_util":88.0`, `"num_gpus":1,`},
		"integers for floats":       {fakevast.IntFloats, `"gpu_util":88,`, `"gpu_util":88,`},
		"floats for integers":       {fakevast.FloatInts, `"num_gpus":1.0`, `"num_gpus":1.0`},
		"text for numbers":          {fakevast.StringNumbers, `"dph_base":"0.4"`, `"dph_base":"0.4"`},
		"no utilisation":            {fakevast.NullUtil, `"gpu_util":null`, `"gpu_util":null`},
		"fields nobody knows":       {fakevast.ExtraFields, `"entirely_new":{`, `"entirely_new":{`},
		"label":                     {0, `"label":""`, `"label":""`},
		"null label":                {fakevast.NullLabel, `"label":null`, `"label":null`},
	} {
		t.Run(name, func(t *testing.T) {
			i.SetHazards(tc.hazard)
			if a := call(t, "GET", list(c), ""); !strings.Contains(a.body, tc.list) {
				t.Errorf("the list lacks %s: %s", tc.list, a.body)
			}
			if a := call(t, "GET", byID, ""); !strings.Contains(a.body, tc.id) {
				t.Errorf("by id, %s is lacking: %s", tc.id, a.body)
			}
		})
	}
	t.Run("stale utilisation", func(t *testing.T) {
		i.SetHazards(fakevast.StaleUtil)
		i.Outbid(fakevast.ExitedStopped)
		if r := row(t, c); fmt.Sprint(r["gpu_util"]) != "88.0" {
			t.Errorf("gpu_util of an instance that does not run: %v", r["gpu_util"])
		}
	})
	t.Run("no instances at all", func(t *testing.T) {
		n := start(t, fakevast.Config{Hazards: fakevast.NullInstances})
		if a := call(t, "GET", list(n), ""); !strings.Contains(a.body, `"instances":null`) {
			t.Error(a.body)
		}
	})
}

func TestClock(t *testing.T) {
	at := time.Date(2026, 8, 7, 12, 0, 0, 0, time.UTC)
	c := start(t, fakevast.Config{Now: func() time.Time { return at }})
	if got := call(t, "GET", list(c), "").header.Get("Date"); got != "Fri, 07 Aug 2026 12:00:00 GMT" {
		t.Errorf("Date: %s", got)
	}
}

// TestInstanceFilters checks the list of what there is to filter by, which the vendor's command line shows above its table.
func TestInstanceFilters(t *testing.T) {
	c := start(t, fakevast.Config{})
	for i, gpu := range []string{"RTX 4090", "H100 SXM", "RTX 4090"} {
		c.AddInstance(fakevast.InstanceConfig{ID: int64(100 + i), GPUName: gpu})
	}
	c.Instance(100).Outbid(fakevast.ExitedStopped)
	want := `{"filters":[` +
		`{"actual_status":"exited","gpu_name":"RTX 4090","verification":"verified"},` +
		`{"actual_status":"running","gpu_name":"H100 SXM","verification":"verified"},` +
		`{"actual_status":"running","gpu_name":"RTX 4090","verification":"verified"}],"success":true}`
	if a := call(t, "GET", c.ConsoleURL()+"/api/v0/instances/filters/", ""); a.status != 200 || a.body != want {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := call(t, "GET", c.ConsoleURL()+"/api/v0/instances/filters/", "", "Authorization", "Bearer x"); a.status != 404 {
		t.Errorf("with another key: %d %s", a.status, a.body)
	}
}

func TestGPUNames(t *testing.T) {
	c := start(t, fakevast.Config{})
	names := func() string {
		return call(t, "GET", c.ConsoleURL()+"/api/v0/gpu_names/unique/", "", "Authorization", "").body
	}
	if got := names(); got != `{"gpu_names":[],"success":true}` {
		t.Errorf("without offers: %s", got)
	}
	for _, gpu := range []string{"RTX 4090", "H100 SXM", "RTX 4090"} {
		c.AddOffer(fakevast.InstanceConfig{GPUName: gpu})
	}
	if got := names(); got != `{"gpu_names":["H100 SXM","RTX 4090"],"success":true}` {
		t.Errorf("%s", got)
	}
}

// TestOfferColumns checks that an offer has all that the vendor's command line shows of it.
func TestOfferColumns(t *testing.T) {
	c := start(t, fakevast.Config{})
	c.AddOffer(fakevast.InstanceConfig{})
	a := call(t, "POST", c.ConsoleURL()+"/api/v0/bundles/", `{}`)
	list, _ := a.v["offers"].([]any)
	if len(list) != 1 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	o, _ := list[0].(map[string]any)
	for name := range strings.FieldsSeq(`id cuda_max_good num_gpus gpu_name pcie_bw cpu_ghz cpu_cores_effective cpu_ram gpu_ram disk_space dph_total
		dlperf dlperf_per_dphtotal score driver_version inet_up inet_down reliability duration machine_id verification host_id direct_port_count
		geolocation discounted_dph_total`) {
		if o[name] == nil {
			t.Errorf("no %s", name)
		}
	}
}
