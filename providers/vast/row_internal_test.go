package vast

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"headrace/router/endpoint"
)

var testNow = time.Unix(1_787_800_000, 0)

func mustRow(t *testing.T, fields string) *row {
	t.Helper()
	r, err := parseRow([]byte(`{"id":1,` + strings.TrimSuffix(fields, ",") + `}`))
	if err != nil {
		t.Fatalf("%s: %v", fields, err)
	}
	return r
}

// TestStates reads tuples of states: actual, cur, next, intended; "-" is null.
func TestStates(t *testing.T) {
	const candidate = endpoint.StateUnknown
	for name, tc := range map[string]struct {
		tuple string
		msg   string
		state endpoint.State
		why   string
		odd   bool
	}{
		"candidate":                          {"running running running running", "", candidate, "", false},
		"offline":                            {"offline running running running", "", endpoint.Preempted, "lost contact", false},
		"no heartbeat":                       {"unknown running running running", "", endpoint.Preempted, "lost contact", false},
		"leaving":                            {"running running running stopped", "", endpoint.Draining, "being stopped", false},
		"leaving, contract first":            {"running running stopped running", "", endpoint.Draining, "goes to stopped", false},
		"GPU gone, container not yet":        {"running stopped stopped running", "", endpoint.Preempted, "GPU", false},
		"running without other columns":      {"running - - -", "", candidate, "", true},
		"capitals":                           {"Running RUNNING running running", "", candidate, "", false},
		"stopped by whomever":                {"exited stopped stopped stopped", "", endpoint.Preempted, "outbid", false},
		"stopped, other word":                {"stopped stopped stopped stopped", "", endpoint.Preempted, "outbid", false},
		"outbid, wants to run":               {"exited stopped - running", "", endpoint.Preempted, "waiting for its GPU", false},
		"container restarting":               {"exited running - running", "", endpoint.Starting, "starting again", false},
		"container died":                     {"exited exited - running", "", endpoint.Preempted, "died", false},
		"start abandoned":                    {"created stopped stopped stopped", "Error response from daemon: OCI runtime create failed", endpoint.Gone, "never run", false},
		"start abandoned without a word":     {"created stopped stopped stopped", "", endpoint.Preempted, "start was lost", false},
		"lost start":                         {"loading stopped - stopped", "", endpoint.Preempted, "start was lost", false},
		"queued start":                       {"loading stopped running running", "", endpoint.Preempted, "waiting for its GPU", false},
		"provisioning":                       {"- running running running", "", endpoint.Starting, "set up", false},
		"created":                            {"created running running running", "", endpoint.Starting, "created", false},
		"loading":                            {"loading running running running", "Pulling from vllm", endpoint.Starting, "Pulling from vllm", false},
		"loading, disk full":                 {"loading running running running", "write /x: no space left on device", endpoint.Gone, "never run", false},
		"loading, no such image":             {"loading running running running", "manifest unknown: manifest unknown", endpoint.Gone, "never run", false},
		"loading, no right to image":         {"loading running running running", "unauthorized: access denied", endpoint.Gone, "never run", false},
		"loading, broken pull":               {"loading running running running", "unexpected EOF", endpoint.Gone, "never run", false},
		"loading, pull failed":               {"loading running running running", "Failed to pull image x", endpoint.Gone, "never run", false},
		"rebooting":                          {"rebooting running running running", "", endpoint.Starting, "rebooting", false},
		"restarting":                         {"restarting running running running", "", endpoint.Starting, "restarting", false},
		"frozen":                             {"frozen running running frozen", "", endpoint.Preempted, "frozen", false},
		"unknown word, contract runs":        {"dancing running running running", "", endpoint.Starting, "dancing", true},
		"unknown word, contract stopped":     {"dancing stopped stopped stopped", "", endpoint.Preempted, "dancing", true},
		"running, but fatal words of before": {"running running running running", "no space left on device", candidate, "", false},
		"nothing":                            {"- - - -", "", endpoint.Starting, "set up", false},
	} {
		t.Run(name, func(t *testing.T) {
			f := strings.Fields(tc.tuple)
			for i := range f {
				if f[i] = `"` + f[i] + `"`; f[i] == `"-"` {
					f[i] = "null"
				}
			}
			msg, _ := json.Marshal(tc.msg)
			got := mustRow(t, fmt.Sprintf(`"actual_status":%s,"cur_state":%s,"next_state":%s,"intended_status":%s,"status_msg":%s`, f[0], f[1], f[2], f[3], msg)).read(testNow)
			if got.candidate != (tc.state == candidate) || got.state != tc.state || !strings.Contains(got.reason, tc.why) || (got.odd != "") != tc.odd {
				t.Errorf("%s: %+v, want %s because %q", tc.tuple, got, tc.state, tc.why)
			}
			if !got.candidate && got.reason == "" {
				t.Error("no reason is given")
			}
		})
	}
	stuck := mustRow(t, `"actual_status":"loading","cur_state":"running","intended_status":"running","start_date":1787797000`)
	if got := stuck.read(testNow); got.state != endpoint.Starting || !strings.Contains(got.reason, "likely stuck") {
		t.Errorf("vast_7.5 loading for 50 min: %+v", got)
	}
	ended := mustRow(t, `"actual_status":"exited","cur_state":"stopped","intended_status":"stopped","end_date":1787797000`)
	if got := ended.read(testNow); got.state != endpoint.Preempted || !strings.Contains(got.reason, "contract has ended") {
		t.Errorf("vast_7.15 behind the end of the contract: %+v", got)
	}
}

func TestStatusMsgHidesSecrets(t *testing.T) {
	r := mustRow(t, `"actual_status":"loading","cur_state":"running","intended_status":"running","jupyter_token":"jup-secret","image_args":["--api-key","arg-secret"],`+
		`"extra_env":[["HF_TOKEN","hf-secret-token"]],"status_msg":"docker run -e HF_TOKEN=hf-secret-token\n --api-key arg-secret jup-secret"`)
	if got := r.read(testNow).reason; strings.Contains(got, "secret") || !strings.Contains(got, "docker run") || strings.Contains(got, "\n") {
		t.Errorf("reason: %s", got)
	}
}

func TestAddresses(t *testing.T) {
	for name, tc := range map[string]struct {
		fields string
		want   string // first URL
	}{
		"plain":               {`"public_ipaddr":"203.0.113.10","ports":{"8000/tcp":[{"HostIp":"0.0.0.0","HostPort":"33526"}]}`, "http://203.0.113.10:33526"},
		"line end":            {`"public_ipaddr":" 203.0.113.10 \n","ports":{"8000/tcp":[{"HostIp":"0.0.0.0","HostPort":"33526"}]}`, "http://203.0.113.10:33526"},
		"two":                 {`"public_ipaddr":"203.0.113.10 203.0.113.11","ports":{"8000/tcp":[{"HostIp":"0.0.0.0","HostPort":"33526"}]}`, "http://203.0.113.10:33526"},
		"twin first":          {`"public_ipaddr":"203.0.113.10","ports":{"8000/tcp":[{"HostIp":"::","HostPort":"1"},{"HostIp":"0.0.0.0","HostPort":"2"}]}`, "http://203.0.113.10:2"},
		"twin alone":          {`"public_ipaddr":"203.0.113.10","ports":{"8000/tcp":[{"HostIp":"::","HostPort":"1"}]}`, "http://203.0.113.10:1"},
		"IPv6":                {`"public_ipaddr":"2001:db8::5","ports":{"8000/tcp":[{"HostIp":"0.0.0.0","HostPort":"1"},{"HostIp":"::","HostPort":"2"}]}`, "http://[2001:db8::5]:2"},
		"IPv6 in brackets":    {`"public_ipaddr":"[2001:db8::5]","ports":{"8000/tcp":[{"HostIp":"::","HostPort":"2"}]}`, "http://[2001:db8::5]:2"},
		"IPv4 in IPv6":        {`"public_ipaddr":"::ffff:203.0.113.10","ports":{"8000/tcp":[{"HostIp":"0.0.0.0","HostPort":"2"}]}`, "http://203.0.113.10:2"},
		"number":              {`"public_ipaddr":"203.0.113.10","ports":{"8000/tcp":[{"HostIp":"0.0.0.0","HostPort":33526}]}`, "http://203.0.113.10:33526"},
		"one, no list":        {`"public_ipaddr":"203.0.113.10","ports":{"8000/tcp":{"HostIp":"","HostPort":"33526"}}`, "http://203.0.113.10:33526"},
		"no protocol":         {`"public_ipaddr":"203.0.113.10","ports":{"8000":[{"HostPort":"33526"}]}`, "http://203.0.113.10:33526"},
		"8000 before others":  {`"public_ipaddr":"203.0.113.10","ports":{"22/tcp":[{"HostPort":"1"}],"7000/tcp":[{"HostPort":"2"}],"8000/tcp":[{"HostPort":"3"}]}`, "http://203.0.113.10:3"},
		"asked for by -p":     {`"public_ipaddr":"203.0.113.10","extra_env":[["-p 9000:9000","1"]],"ports":{"1111/tcp":[{"HostPort":"1"}],"7000/tcp":[{"HostPort":"2"}],"9000/tcp":[{"HostPort":"3"}]}`, "http://203.0.113.10:3"},
		"asked for by --port": {`"public_ipaddr":"203.0.113.10","image_args":["serve x --port 9000"],"ports":{"7000/tcp":[{"HostPort":"2"}],"9000/tcp":[{"HostPort":"3"}]}`, "http://203.0.113.10:3"},
		"identity port":       {`"public_ipaddr":"203.0.113.10","extra_env":{"-p 70000:70000":"1"},"ports":{"70000/tcp":[{"HostPort":"41000"}]}`, "http://203.0.113.10:41000"},
		"UDP":                 {`"public_ipaddr":"203.0.113.10","ports":{"8000/udp":[{"HostPort":"1"}]}`, ""},
		"unpublished":         {`"public_ipaddr":"203.0.113.10","ports":{"8000/tcp":null}`, ""},
		"SSH alone":           {`"public_ipaddr":"203.0.113.10","ports":{"22/tcp":[{"HostPort":"1"}]}`, ""},
		"no port of TCP":      {`"public_ipaddr":"203.0.113.10","ports":{"8000/tcp":[{"HostPort":"99999"}]}`, ""},
		"list":                {`"public_ipaddr":"203.0.113.10","ports":[33526,33527]`, ""},
		"null":                {`"public_ipaddr":"203.0.113.10","ports":null`, ""},
		"no address":          {`"public_ipaddr":null,"ports":{"8000/tcp":[{"HostPort":"1"}]}`, ""},
		"unspecified address": {`"public_ipaddr":"0.0.0.0","ports":{"8000/tcp":[{"HostPort":"1"}]}`, ""},
		"a name":              {`"public_ipaddr":"host.example","ports":{"8000/tcp":[{"HostPort":"1"}]}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := mustRow(t, tc.fields)
			got := ""
			if a := r.addresses(r.Ports, 0, 0); len(a) > 0 {
				got = a[0].url("http://{ip}:{port}")
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestBearers(t *testing.T) {
	for name, tc := range map[string]struct{ fields, want string }{
		"order": {`"image_args":["--api-key","a"],"extra_env":[["VLLM_API_KEY","b"],["OPEN_BUTTON_TOKEN","c"],["WEB_PASSWORD","d"]],"jupyter_token":"e"`, "cfg a! b c d e"},
		"vLLM's own variable": {
			`"image_uuid":"vllm/vllm-openai:latest","extra_env":[["VLLM_API_KEY","b"]]`, "cfg b!",
		},
		"made up by the image": {`"extra_env":[["OPEN_BUTTON_TOKEN","1"]]`, "cfg"},
		"equals sign":          {`"image_args":["--api-key=a"]`, "cfg a!"},
		"in a script":          {`"image_args":["bash","-c","vllm serve x --api-key 'a' --port 8000"]`, "cfg a!"},
		"from the environment": {`"image_args":"--api-key ${KEY}","extra_env":{"KEY":"a"}`, "cfg a!"},
		"flag without a value": {`"image_args":["--api-key","--port","1"]`, "cfg"},
		"twice":                {`"jupyter_token":"cfg"`, "cfg"},
		"line break":           {`"jupyter_token":"a\r\nX: y"`, "cfg"},
		"lines":                {`"extra_env":["WEB_PASSWORD=d=d"]`, "cfg d=d"},
		"odd":                  {`"extra_env":7,"image_args":{},"jupyter_token":[]`, "cfg"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, b := range mustRow(t, tc.fields).bearers("cfg") {
				s := b.key.Reveal()
				if b.told {
					s += "!"
				}
				got = append(got, s)
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("%q, want %q", s, tc.want)
			}
		})
	}
}

// TestFacts reads the row of the fact sheet.
func TestFacts(t *testing.T) {
	p := New(Options{Key: "k"})
	describe := func(fields string) endpoint.Endpoint {
		r := mustRow(t, fields)
		return p.endpoint(&host{id: r.id(), row: r, says: r.read(testNow), readAt: testNow}, testNow)
	}
	const states = `"actual_status":"running","cur_state":"running","next_state":"running","intended_status":"running",`
	ep := describe(states + `"machine_id":145651,"host_id":55555,"label":"gw","is_bid":true,"image_args":["--max-num-seqs","64"],"gpu_name":"RTX 4090","num_gpus":2,"gpu_frac":0.25,
		"internet_up_cost_per_tb":0.5,"internet_down_cost_per_tb":0.25,"inet_up_cost":0.00049,"inet_down_cost":0.00024,"dph_total":0.2104,"storage_total_cost":0.0104,
		"search":{"discountTotalHour":0,"discountedTotalPerHour":0.2104},"reliability2":0.993,"verification":"verified","hosting_type":1,"geolocation":"California, US",
		"end_date":1790000000.0,"template_name":"vLLM","static_ip":true`)
	want := endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 0.2104, USDPerHourStopped: 0.0104, USDPerGBIn: 0.00025, USDPerGBOut: 0.0005, Accrues: endpoint.AccruesRent, AsOf: testNow, Source: "vast dph_total"}
	if ep.Price != want {
		t.Errorf("price %+v, want %+v", ep.Price, want)
	}
	if ep.Hardware != (endpoint.Hardware{GPU: "RTX 4090", GPUCount: 2, Machine: "vast:machine:145651", Host: "vast:host:55555"}) {
		t.Errorf("hardware %+v", ep.Hardware)
	}
	if ep.Trust != endpoint.TrustDatacenter || ep.Region != "US" || ep.Tenure != endpoint.Interruptible || ep.MaxNumSeqs != 64 || ep.Until.Unix() != 1790000000 {
		t.Errorf("trust %s, region %q, tenure %s, %d sequences, until %s", ep.Trust, ep.Region, ep.Tenure, ep.MaxNumSeqs, ep.Until)
	}
	for k, v := range map[string]string{
		"vast_label": "gw", "vast_template": "vLLM", "vast_geolocation": "California, US", "vast_reliability": "0.99", "vast_verification": "verified",
		"vast_machine_share": "0.25", "vast_static_ip": "true",
	} {
		if ep.Labels[k] != v {
			t.Errorf("label %s is %q, want %q", k, ep.Labels[k], v)
		}
	}
	if ep := describe(`"actual_status":"exited","cur_state":"stopped","intended_status":"stopped","dph_total":0.3,"storage_total_cost":0.01,"instance":{"totalHour":0.02}`); ep.Price.USDPerHourStopped != 0.02 {
		t.Errorf("a stopped instance costs %v, want what accrues", ep.Price.USDPerHourStopped)
	}
	if ep := describe(states + `"dph_total":0.8,"search":{"discountTotalHour":0.2,"discountedTotalPerHour":0.6}`); ep.Price.USDPerHour != 0.6 || ep.Labels["vast_reserved"] != "true" {
		t.Errorf("a reserved instance: %+v %v", ep.Price, ep.Labels)
	}
	if ep := describe(states + `"dph_total":null`); ep.Price.Basis != endpoint.BasisUnknown {
		t.Errorf("without dph_total: %+v", ep.Price)
	}
	if ep := describe(states + `"dph_total":1,"inet_up_cost":0.002`); ep.Price.USDPerGBOut != 0.002 {
		t.Errorf("price per GB where none per TB is given: %+v", ep.Price)
	}
	disk := mustRow(t, states+`"disk_space":50,"disk_usage":49.1`)
	if s, why := p.state(&host{row: disk, says: disk.read(testNow), known: true}, testNow); s != endpoint.Ready || !strings.Contains(why, "98 %") {
		t.Errorf("vast_7.10 full disk: %s %q", s, why)
	}
}

func TestTrustAndRegion(t *testing.T) {
	for name, tc := range map[string]struct {
		fields string
		trust  endpoint.Trust
		region string
		odd    bool
	}{
		"verified":            {`"verification":"verified","hosting_type":0,"geolocation":", US"`, endpoint.TrustVerified, "US", false},
		"data centre":         {`"verification":"verified","hosting_type":1,"geolocation":"Guangxi, CN"`, endpoint.TrustDatacenter, "CN", false},
		"data centre in word": {`"verification":"verified","hosting_type":"datacenter"`, endpoint.TrustDatacenter, "", false},
		"unverified centre":   {`"verification":"unverified","hosting_type":1`, endpoint.TrustCommunity, "", false},
		"centre, not said":    {`"hosting_type":1`, endpoint.TrustCommunity, "", false},
		"centre, odd word":    {`"verification":"blessed","hosting_type":1`, endpoint.TrustCommunity, "", true},
		"withdrawn":           {`"verification":"deverified","hosting_type":1,"geolocation":null`, endpoint.TrustCommunity, "", false},
		"nobody":              {`"verification":"unverified"`, endpoint.TrustCommunity, "", false},
		"nothing":             {`"x":1`, endpoint.TrustCommunity, "", false},
		"unknown word":        {`"verification":"blessed"`, endpoint.TrustCommunity, "", true},
		"unknown hosting":     {`"verification":"verified","hosting_type":7`, endpoint.TrustVerified, "", true},
		"country column":      {`"country_code":"de","geolocation":"Hesse, Germany"`, endpoint.TrustCommunity, "DE", false},
		"country in words":    {`"geolocation":"California, United States"`, endpoint.TrustCommunity, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			r := mustRow(t, tc.fields)
			trust, o1 := r.trust()
			region, o2 := r.region()
			if trust != tc.trust || region != tc.region || (o1+o2 != "") != tc.odd {
				t.Errorf("%s %q (%s%s), want %s %q", trust, region, o1, o2, tc.trust, tc.region)
			}
		})
	}
}

// FuzzRow reads rows of any shape: none may panic, and what is read must be within bounds.
func FuzzRow(f *testing.F) {
	f.Add([]byte(`{"id":48738927,"actual_status":"running","cur_state":"running","next_state":"running","intended_status":"running","public_ipaddr":"203.0.113.10","ports":{"8000/tcp":[{"HostIp":"::","HostPort":"33526"}]},"extra_env":[["-p 8000:8000","1"]],"image_args":["--api-key","x"]}`))
	f.Add([]byte(`{"id":"1","ports":[1,2],"extra_env":{"a":1},"image_args":"x --port 1","search":[],"dph_total":"0.3","end_date":1e300}`))
	f.Add([]byte(`{"id":1,"ports":{"8000/tcp":{"HostPort":1}},"public_ipaddr":"::1%eth0","extra_env":["A=b",["x"],3],"num_gpus":-1}`))
	f.Add([]byte(`{"id":null}`))
	f.Add([]byte(`[]`))
	p := New(Options{Key: "k"})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseRow(raw)
		if err != nil {
			return
		}
		h := &host{id: r.id(), row: r, says: r.read(testNow)}
		h.addrs = r.addresses(r.Ports, 0, 0)
		h.keys = r.bearers("")
		ep := p.endpoint(h, testNow)
		if ep.State == endpoint.Ready || ep.State == endpoint.StateUnknown {
			t.Errorf("%s: it is %s though nobody asked it", raw, ep.State)
		}
		for _, v := range []float64{ep.Price.USDPerHour, ep.Price.USDPerGBIn, ep.Price.USDPerGBOut} {
			if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
				t.Errorf("%s: price %+v", raw, ep.Price)
			}
		}
		for _, a := range h.addrs {
			if a.port < 1 || a.port > 65535 || !a.ip.IsValid() {
				t.Errorf("%s: address %+v", raw, a)
			}
		}
		if ep.Hardware.GPUCount < 0 || ep.MaxNumSeqs < 0 || !same(&ep, &ep) {
			t.Errorf("%s: %+v", raw, ep)
		}
	})
}

// FuzzModels reads lists of models of any shape.
func FuzzModels(f *testing.F) {
	f.Add([]byte(`{"object":"list","data":[{"id":"m","max_model_len":4096,"created":1,"permission":[]}]}`))
	f.Add([]byte(`{"data":null}`))
	f.Add([]byte(`{"data":[null,3,{"id":"a"},{"id":"a"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		served, ok := parseModels(body)
		if !ok && served != nil {
			t.Errorf("%s: models of what is no list", body)
		}
		for i, s := range served {
			if s.Name == "" || len(s.Name) > maxName || s.MaxContext < 0 || i > 0 && served[i-1].Name >= s.Name {
				t.Errorf("%s: %+v", body, served)
			}
		}
	})
}

// FuzzScan compares the cutting of objects and arrays with encoding/json.
func FuzzScan(f *testing.F) {
	for _, s := range []string{
		`{"a":1,"b":[1,{"c":"]}"}],"d":"x\"y\\","e":null}`, ` [ 1 , "a" , {} , [ ] ] `, `{}`, `[]`, `{"a":1,}`, `[1,]`, `{"a" 1}`, `[1 2]`, `{"a":[1,2}`, `"`, `{"a":"\\"}`, `[[[`, `{"a":1} x`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var keys, values []string
		isObject := members(b, func(k, v []byte) { keys, values = append(keys, string(k)), append(values, string(v)) })
		var items []string
		isArray := elements(b, func(v []byte) { items = append(items, string(v)) })
		if isObject && isArray {
			t.Fatalf("%q is both object and array", b)
		}
		if !json.Valid(b) {
			return // anything may be read of it, but for a panic
		}
		var object map[string]json.RawMessage
		var array []json.RawMessage
		trimmed := strings.TrimLeft(string(b), " \t\r\n")
		if (trimmed[0] == '{') != isObject || (trimmed[0] == '[') != isArray {
			t.Fatalf("%q: object %v, array %v", b, isObject, isArray)
		}
		switch {
		case isObject && json.Unmarshal(b, &object) == nil:
			for i, k := range keys {
				var name string
				if json.Unmarshal([]byte(`"`+k+`"`), &name) != nil || !slices.Contains(keys[i+1:], k) && !strings.Contains(k, `\`) && string(object[name]) != values[i] && utf8.ValidString(k) {
					t.Fatalf("%q: member %q is %q, and %q for encoding/json", b, k, values[i], object[name])
				}
			}
		case isArray && json.Unmarshal(b, &array) == nil:
			if len(array) != len(items) {
				t.Fatalf("%q: %d elements, and %d for encoding/json", b, len(items), len(array))
			}
			for i := range items {
				if items[i] != string(array[i]) {
					t.Fatalf("%q: element %d is %q, and %q for encoding/json", b, i, items[i], array[i])
				}
			}
		}
	})
}
