package config

import (
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// RunPod is an account at RunPod whose endpoints and pods are hosts. Nil means that RunPod is not asked.
type RunPod struct {
	APIKey    endpoint.Secret    `yaml:"api_key" otherwise:"RUNPOD_API_KEY" eg:"${RUNPOD_API_KEY}" doc:"Key of the account." aka:"key|token|apikey"`
	Endpoints []RunPodEndpoint   `yaml:"endpoints" otherwise:"every queue and load-balancing endpoint of the account" eg:"llama-*" doc:"Serverless endpoints to use: ids or names, exact or with \"*\" at the end, or sections. The first that fits an endpoint counts." aka:"serverless"`
	Pods      []RunPodPod        `yaml:"pods" otherwise:"none" eg:"vllm-*" doc:"Pods to use: ids or names, exact or with \"*\" at the end, or sections." aka:"pod"`
	Prices    map[string]float64 `yaml:"prices" min:"0" otherwise:"RunPod's own catalogue" doc:"US dollars per second of one GPU, by RunPod's name of the GPU type or pool; wins over the catalogue." aka:"price"`

	Poll        time.Duration `yaml:"poll" above:"0" default:"60s" doc:"Between two looks at the account's endpoints, pods and workers; stretched where RunPod's rate limit asks for it." aka:"interval"`
	HealthPoll  time.Duration `yaml:"health_poll" above:"0" default:"5s" doc:"Between two looks at an endpoint's workers and queue (/health)."`
	CatalogPoll time.Duration `yaml:"catalog_poll" above:"0" default:"10m" doc:"Between two looks at RunPod's price list."`
	MaxHeld     int           `yaml:"max_held" min:"1" default:"1" doc:"Most workers that are held up at once by actions: hold, all endpoints together, over what you have set at RunPod." aka:"max_workers_held"`
	HeldFile    string        `yaml:"held_file" unit:"file" otherwise:"none: state.redis remembers it" eg:"/var/lib/headrace/held.json" doc:"Where it is remembered which workers are held, so that the next run puts right what one that crashed has left. Each process needs its own. Not used with state.redis."`
	JobTTL      time.Duration `yaml:"job_ttl" above:"0" default:"30m" doc:"How long a job that nobody waits for any more may stay in RunPod's queue or run (policy.ttl)."`

	ManagementURL string `yaml:"management_url" default:"https://api.runpod.io/v2" doc:"RunPod's management API, version 2."`
	QueueURL      string `yaml:"queue_url" default:"https://api.runpod.ai/v2" doc:"Where queue endpoints are reached."`
	BalancerURL   string `yaml:"balancer_url" default:"https://{id}.api.runpod.ai" doc:"Where a load-balancing endpoint is reached; {id} stands for its id."`
	PodURL        string `yaml:"pod_url" default:"https://{id}-{port}.proxy.runpod.net" doc:"Where a pod's HTTP port is reached."`
}

// RunPodEndpoint says how a serverless endpoint is used.
type RunPodEndpoint struct {
	Match   string   `yaml:"match" short:"true" required:"true" eg:"llama-*" doc:"Id or name, exact or with \"*\" at the end." aka:"id|name|endpoint"`
	Models  []string `yaml:"models" otherwise:"what the endpoint's own settings say, or its first answer" eg:"llama-70b" doc:"Model ids it serves." aka:"model|serves"`
	Native  bool     `yaml:"native" default:"false" doc:"Its handler has no OpenAI route: requests go as native jobs always, of a prompt and sampling parameters; tools, forms of the output and the like go to other hosts."`
	Actions string   `yaml:"actions" words:"off|wake|hold" default:"off" doc:"What may be done when it would help. off: nothing, it is advised at the admin API only. wake: a worker is started by a job of one token when the hosts that are paid anyway are nearly full, at most every 20 s; costs its start, the token and its idle timeout, whether it is needed then or not. hold: that, and workers are kept up (workers.min at RunPod is raised) while that is cheaper than the API that takes the same requests; costs their price by the second, used or not, until they are let go." aka:"action|capacity_actions"`
}

// RunPodPod says how pods are used.
type RunPodPod struct {
	Match  string          `yaml:"match" short:"true" required:"true" eg:"vllm-*" doc:"Id or name, exact or with \"*\" at the end." aka:"id|name|pod"`
	Port   int             `yaml:"port" min:"1" max:"65535" default:"8000" doc:"Port inside the pod on which the model is served."`
	TCP    bool            `yaml:"tcp" default:"false" doc:"Use the pod's public TCP port, without TLS, instead of RunPod's HTTP proxy. With an api_key, who answers there has to refuse any other."`
	Spot   bool            `yaml:"spot" default:"false" doc:"It may be taken away at any time: RunPod's API does not tell." aka:"interruptible"`
	APIKey endpoint.Secret `yaml:"api_key" otherwise:"none" eg:"${POD_KEY}" doc:"Key that the model server in the pod asks for." aka:"key|token"`
	Models []string        `yaml:"models" otherwise:"asked from the pod's GET /models" eg:"llama-70b" doc:"Model ids it serves." aka:"model|serves"`
}

// Vast is an account at Vast.ai whose instances and serverless endpoints are hosts. Nil means that Vast.ai is not asked.
type Vast struct {
	APIKey        endpoint.Secret  `yaml:"api_key" otherwise:"VAST_API_KEY" eg:"${VAST_API_KEY}" doc:"Key of the account; it needs the permissions instance_read and, for serverless, misc." aka:"key|token|apikey"`
	Instances     VastInstances    `yaml:"instances" doc:"Which rented instances are used, and how." aka:"instance"`
	Serverless    []VastServerless `yaml:"serverless" otherwise:"none" eg:"qwen-*" doc:"Serverless endpoints to use: names, exact or with \"*\" at the end, or sections." aka:"endpoints"`
	Poll          time.Duration    `yaml:"poll" above:"0" default:"15s" doc:"Between two looks at the account's instances; at least a second for each 25 of them, as Vast.ai's rate limit asks." aka:"interval"`
	WebhookSecret endpoint.Secret  `yaml:"webhook_secret" otherwise:"VAST_WEBHOOK_SECRET, else webhooks are refused" eg:"${VAST_WEBHOOK_SECRET}" doc:"Secret of a webhook that points to /webhooks/vast: it makes the gateway look at once." aka:"webhook"`

	ConsoleURL  string `yaml:"console_url" default:"https://console.vast.ai" doc:"Vast.ai's API."`
	RunURL      string `yaml:"run_url" default:"https://run.vast.ai" doc:"Vast.ai's serverless engine."`
	OpenAIURL   string `yaml:"openai_url" default:"https://openai.vast.ai" doc:"Vast.ai's OpenAI proxy for serverless endpoints."`
	InstanceURL string `yaml:"instance_url" default:"http://{ip}:{port}" doc:"Where an instance's mapped port is reached."`
}

// VastInstances says which instances are used, and how.
type VastInstances struct {
	Labels        []string        `yaml:"labels" otherwise:"any label, and none" eg:"headrace" doc:"Labels of the instances to use." aka:"label"`
	Templates     []string        `yaml:"templates" otherwise:"any template" eg:"vllm" doc:"Ids, hashes or names of the templates of the instances to use." aka:"template"`
	IDs           []int           `yaml:"ids" min:"1" otherwise:"all" eg:"48738927" doc:"Ids of the instances to use." aka:"id"`
	Port          int             `yaml:"port" min:"1" max:"65535" otherwise:"the mapped port that answers, 8000 first" eg:"8000" doc:"Port inside the container on which the model is served."`
	APIKey        endpoint.Secret `yaml:"api_key" otherwise:"what the instance's own settings say" eg:"${VLLM_API_KEY}" doc:"Key that the model servers ask for." aka:"key|token|bearer"`
	Models        []string        `yaml:"models" otherwise:"asked from the instance's GET /models" eg:"llama-70b" doc:"Model ids to offer of those that an instance serves." aka:"model|serves"`
	TLS           string          `yaml:"tls" words:"auto|plain|system|vast|pin|insecure" default:"auto" doc:"How instances are spoken to: plain HTTP, or TLS under the system's roots, under Vast.ai's root, with the certificate met first, or with any; auto finds out whether the port speaks TLS and then asks for Vast.ai's root."`
	LeaveBefore   time.Duration   `yaml:"leave_before" default:"10m" doc:"An instance whose contract ends within that time gets nothing new."`
	MaxUSDPerHour float64         `yaml:"max_usd_per_hour" above:"0" otherwise:"no limit" eg:"0.60" doc:"An instance whose price, US dollars per hour, is above that gets nothing new for as long as it is: bids move." aka:"max_price|price_limit"`
}

// VastServerless says how a serverless endpoint is used.
type VastServerless struct {
	Match   string   `yaml:"match" short:"true" required:"true" eg:"qwen-*" doc:"Name, exact or with \"*\" at the end." aka:"name|endpoint"`
	Way     string   `yaml:"way" words:"proxy|route" default:"proxy" doc:"By Vast.ai's OpenAI proxy, or by asking for a worker and calling it directly."`
	Payload string   `yaml:"payload" words:"auto|wrapped|bare" default:"auto" doc:"How workers want the request with way: route: below \"input\", or bare; auto tries."`
	Models  []string `yaml:"models" otherwise:"the endpoint's name" eg:"qwen3-8b" doc:"Model ids it serves." aka:"model|serves"`
}

// Require is what a model asks of every host that may see its prompts.
type Require struct {
	Trust     endpoint.Trust `yaml:"trust" words:"community|verified|datacenter|secure" otherwise:"anybody" doc:"Least trust in whose machine it is: a stranger's, a verified one's, a data centre's, one's own or a provider's secure cloud."`
	Encrypted bool           `yaml:"encrypted" default:"false" doc:"Whether the way to the host must be under TLS." aka:"tls|https"`
	Regions   []string       `yaml:"regions" otherwise:"anywhere" eg:"EU" doc:"Regions in which it must stand: any of them. US contains US-KS-2, EU its member states." aka:"region"`
}

// Environment variables of the clouds. Keys make a provider known without a file; all others win over the file.
const (
	EnvRunPodKey        = "RUNPOD_API_KEY"
	EnvRunPodManagement = "RUNPOD_MANAGEMENT_URL"
	EnvRunPodQueue      = "RUNPOD_QUEUE_URL"
	EnvRunPodBalancer   = "RUNPOD_BALANCER_URL"
	EnvRunPodPod        = "RUNPOD_POD_URL"
	EnvRunPodPods       = "RUNPOD_PODS"
	EnvRunPodPoll       = "RUNPOD_POLL"
	EnvVastKey          = "VAST_API_KEY"
	EnvVastConsole      = "VAST_CONSOLE_URL"
	EnvVastRun          = "VAST_RUN_URL"
	EnvVastOpenAI       = "VAST_OPENAI_URL"
	EnvVastInstance     = "VAST_INSTANCE_URL"
	EnvVastServerless   = "VAST_SERVERLESS"
	EnvVastPoll         = "VAST_POLL"
	EnvVastWebhook      = "VAST_WEBHOOK_SECRET"
	EnvRedis            = "REDIS_URL"
)

// clouds applies the environment to the providers that are rented from. A file that has a providers section says
// by itself which there are; without one, a key in the environment is enough.
func (c *Config) clouds(getenv func(string) (string, bool)) []Problem {
	e := environment{get: getenv}
	listed := c.given("providers")
	if e.text(EnvRunPodKey) != "" && !listed {
		c.Providers.RunPod = &RunPod{}
		(&decoder{}).defaults(reflect.ValueOf(c.Providers.RunPod).Elem())
	}
	if e.text(EnvVastKey) != "" && !listed {
		c.Providers.Vast = &Vast{}
		(&decoder{}).defaults(reflect.ValueOf(c.Providers.Vast).Elem())
	}
	if r := c.Providers.RunPod; r != nil {
		c.key(&e, &r.APIKey, "providers.runpod.api_key", EnvRunPodKey)
		e.url(&r.ManagementURL, EnvRunPodManagement)
		e.url(&r.QueueURL, EnvRunPodQueue)
		e.url(&r.BalancerURL, EnvRunPodBalancer, "{id}")
		e.url(&r.PodURL, EnvRunPodPod, "{id}", "{port}")
		e.duration(&r.Poll, EnvRunPodPoll)
		if e.flag(EnvRunPodPods) && len(r.Pods) == 0 {
			r.Pods = []RunPodPod{{Match: "*", Port: 8000}}
		}
	}
	if v := c.Providers.Vast; v != nil {
		c.key(&e, &v.APIKey, "providers.vast.api_key", EnvVastKey)
		if s := e.text(EnvVastWebhook); s != "" && v.WebhookSecret == "" {
			v.WebhookSecret = endpoint.Secret(s)
		}
		e.url(&v.ConsoleURL, EnvVastConsole)
		e.url(&v.RunURL, EnvVastRun)
		e.url(&v.OpenAIURL, EnvVastOpenAI)
		e.url(&v.InstanceURL, EnvVastInstance, "{ip}", "{port}")
		e.duration(&v.Poll, EnvVastPoll)
		if e.flag(EnvVastServerless) && len(v.Serverless) == 0 {
			v.Serverless = []VastServerless{{Match: "*", Way: "proxy", Payload: "auto"}}
		}
	}
	if s := e.text(EnvRedis); s != "" && !c.given("state.redis") {
		c.State.Redis = endpoint.Secret(s)
	}
	return append(e.problems, c.checkClouds()...)
}

// key takes the account's key from the environment where the file has none.
func (c *Config) key(e *environment, into *endpoint.Secret, path, env string) {
	if c.given(path) {
		return
	}
	*into = endpoint.Secret(e.text(env))
	if strings.ContainsFunc(e.text(env), func(r rune) bool { return r <= 0x20 || r == 0x7f }) {
		e.bad(env, "holds a space or a control character", "write the key alone")
		return
	}
	if *into == "" {
		p := c.problem(strings.TrimSuffix(path, ".api_key"), "has no api_key", "set "+env+", or write api_key")
		e.problems = append(e.problems, p)
	}
}

// environment reads variables that stand for values.
type environment struct {
	get      func(string) (string, bool)
	problems []Problem
}

func (e *environment) text(name string) string {
	v, _ := e.get(name)
	return v
}

func (e *environment) bad(name, what, hint string) {
	e.problems = append(e.problems, Problem{Source: "environment variable " + name, What: what, Hint: hint})
}

func (e *environment) url(into *string, name string, places ...string) {
	v := e.text(name)
	if v == "" {
		return
	}
	if m := checkPattern(v, places); m != nil {
		e.bad(name, m.what, m.hint)
		return
	}
	*into = strings.TrimRight(v, "/")
}

func (e *environment) duration(into *time.Duration, name string) {
	v := e.text(name)
	if v == "" {
		return
	}
	d, m := parseDuration(v)
	if m == nil && d <= 0 {
		m = &mistake{"must be above 0", "for example 15s"}
	}
	if m != nil {
		e.bad(name, m.what, m.hint)
		return
	}
	*into = d
}

func (e *environment) flag(name string) bool {
	switch v := e.text(name); v {
	case "", "0", "false":
		return false
	case "1", "true":
		return true
	default:
		e.bad(name, "is neither true nor false", "write 1 or 0")
		return false
	}
}

// checkPattern looks at an address with places for what is filled in.
func checkPattern(s string, places []string) *mistake {
	plain := s
	for _, p := range places {
		if !strings.Contains(s, p) {
			return &mistake{"has no " + p, "write the address with " + strings.Join(places, " and ") + " in it"}
		}
		fill := "1"
		if p == "{ip}" {
			fill = "192.0.2.1"
		}
		plain = strings.ReplaceAll(plain, p, fill)
	}
	u, err := url.Parse(plain)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "":
		return &mistake{"is no http:// or https:// address", `for example "https://api.example.com"`}
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return &mistake{"holds a user, query or fragment", "write the address alone"}
	}
	return nil
}

// checkClouds finds what is wrong with the values of providers.runpod and providers.vast.
func (c *Config) checkClouds() []Problem {
	var problems []Problem
	check := func(path, value string, places ...string) {
		if !c.good(path) {
			return
		}
		if m := checkPattern(value, places); m != nil {
			problems = append(problems, c.problem(path, m.what, m.hint))
		}
	}
	match := func(path, value string) {
		at := path + ".match"
		if !c.given(at) {
			at = path
		}
		if !c.good(at) {
			return
		}
		if star := strings.IndexByte(value, '*'); star >= 0 && star != len(value)-1 || strings.TrimSpace(value) == "" {
			problems = append(problems, c.problem(at, c.shown(at, value)+`is no id or name, nor the beginning of one with "*" at its end`, `write for example "llama-*"`))
		}
	}
	if r := c.Providers.RunPod; r != nil {
		const at = "providers.runpod"
		check(at+".management_url", r.ManagementURL)
		check(at+".queue_url", r.QueueURL)
		check(at+".balancer_url", r.BalancerURL, "{id}")
		check(at+".pod_url", r.PodURL, "{id}", "{port}")
		for i := range r.Endpoints {
			match(fmt.Sprintf("%s.endpoints[%d]", at, i), r.Endpoints[i].Match)
		}
		for i := range r.Endpoints {
			path := fmt.Sprintf("%s.endpoints[%d].actions", at, i)
			if r.Endpoints[i].Actions == "hold" && r.HeldFile == "" && c.State.Redis == "" && c.good(path) {
				problems = append(problems, c.problem(path, "cannot be hold: there is nowhere to remember what is held when the gateway dies",
					"set providers.runpod.held_file, or state.redis where there are several replicas"))
			}
		}
		for i := range r.Pods {
			match(fmt.Sprintf("%s.pods[%d]", at, i), r.Pods[i].Match)
		}
		for _, u := range []*string{&r.ManagementURL, &r.QueueURL, &r.BalancerURL, &r.PodURL} {
			*u = strings.TrimRight(*u, "/")
		}
	}
	if v := c.Providers.Vast; v != nil {
		const at = "providers.vast"
		check(at+".console_url", v.ConsoleURL)
		check(at+".run_url", v.RunURL)
		check(at+".openai_url", v.OpenAIURL)
		check(at+".instance_url", v.InstanceURL, "{ip}", "{port}")
		for i := range v.Serverless {
			match(fmt.Sprintf("%s.serverless[%d]", at, i), v.Serverless[i].Match)
		}
		for _, u := range []*string{&v.ConsoleURL, &v.RunURL, &v.OpenAIURL, &v.InstanceURL} {
			*u = strings.TrimRight(*u, "/")
		}
	}
	return problems
}
