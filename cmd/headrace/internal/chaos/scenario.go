package chaos

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"headrace/gateway/config"
	"headrace/providers/fakecloud"
)

// Scenario is a fleet, what callers ask of it and what befalls it.
type Scenario struct {
	Name, Title string
	For         time.Duration // callers begin no answer after that
	Streams     int           // callers at once
	Every       time.Duration // between two faults
	Down        time.Duration // until a fault is over, ±30 %
	Keep        int           // hosts that are well at any time
	Speed       float64       // engines are so many times faster than in life
	Seed        uint64
	TLS         bool // hosts of the config, and the gateway for its callers, speak TLS
	TokenIDs    bool // the gateway continues answers by the numbers of their tokens, where it can
	Traffic     Traffic
	Hosts       []HostSpec
	Faults      []FaultSpec
	Complete    float64 // target: share of the answers that may be continued
	LeftOut     string  // what this build cannot do, "" for nothing
}

// Kind is where a host is rented.
type Kind string

// Kinds.
const (
	Static Kind = "static" // it stands in the config: there is no control plane
	Vast   Kind = "vast"   // an instance at the fake Vast.ai
	RunPod Kind = "runpod" // a queue endpoint at the fake RunPod
)

// HostSpec is a number of alike hosts.
type HostSpec struct {
	Name    string
	Count   int
	Kind    Kind
	Class   fakecloud.Class
	TPS     float64       // of one stream alone
	TTFT    time.Duration // of a short prompt, alone
	Seqs    int           // sequences at once
	Workers int           // of a RunPod endpoint
	Plain   bool          // of a static host: it knows no token numbers
	Native  bool          // of a RunPod endpoint: by native jobs only
}

// Do is what befalls a host.
type Do string

// What there is.
const (
	Kill    Do = "kill"    // connections are reset, new ones refused
	Exit    Do = "exit"    // connections end by FIN, new ones are refused
	Dark    Do = "dark"    // packets are dropped; afterwards all goes on
	Vanish  Do = "vanish"  // packets are dropped; afterwards it has been started anew
	Engine  Do = "engine"  // faults of the engine, in requests that begin meanwhile
	Network Do = "network" // toxics on the way to it
	Outbid  Do = "outbid"  // Vast.ai gives its GPU away; it comes back at another port
	Leave   Do = "leave"   // Vast.ai says that it stops, then it does; it comes back at another port
	Offline Do = "offline" // dark, and Vast.ai says so in the end
	Restart Do = "restart" // it comes back at another port as fast as it can
	Worker  Do = "worker"  // the busiest worker of a RunPod endpoint dies
)

// suffers says whom it can befall.
func (d Do) suffers(k Kind) bool {
	switch d {
	case Kill, Exit, Dark, Vanish, Network:
		return k == Static
	case Engine:
		return k != RunPod
	case Outbid, Leave, Offline, Restart:
		return k == Vast
	case Worker:
		return k == RunPod
	}
	return false
}

// dead says that nobody answers there meanwhile.
func (d Do) dead() bool { return d != Engine && d != Network && d != Worker && d != Leave }

// FaultSpec is something that can befall a host.
type FaultSpec struct {
	Do     Do
	Weight float64 // how often, beside the others
	Hosts  string  // name of the hosts, "" for all that it can befall
	Engine []fakecloud.Fault
	Toxics []Toxic
}

// Toxic is what ails the way to a host.
type Toxic struct {
	Kind    string        // latency, bandwidth, reset, timeout or slicer: toxiproxy's
	Delay   time.Duration // latency: of all data; reset and timeout: until then
	Jitter  time.Duration // latency: more or less
	KBps    int           // bandwidth
	Upwards bool          // on what is sent to the host
}

type file struct {
	Name     string        `yaml:"name" default:"own" eg:"spot" doc:"What the report calls it." aka:"id|scenario"`
	Title    string        `yaml:"title" default:"a scenario of one's own" eg:"six hosts, one killed every 10 s" doc:"What it is, in a line." aka:"description"`
	For      time.Duration `yaml:"for" above:"0" default:"1m" eg:"10m" doc:"Callers begin no answer after that." aka:"duration|length"`
	Streams  int           `yaml:"streams" min:"1" max:"10000" default:"60" eg:"200" doc:"Callers that read one answer after another." aka:"callers|concurrency"`
	Every    time.Duration `yaml:"every" above:"0" default:"10s" eg:"10s" doc:"Time between two faults." aka:"kill_every|interval"`
	Down     time.Duration `yaml:"down" above:"0" default:"20s" eg:"20s" doc:"How long a fault lasts, ±30 %." aka:"away|downtime"`
	Keep     int           `yaml:"keep" min:"0" max:"1000" default:"2" eg:"2" doc:"Hosts that are well at any time: nothing befalls one more." aka:"alive"`
	Speed    float64       `yaml:"speed" above:"0" max:"1000" default:"1" eg:"4" doc:"Engines are so many times faster than in life." aka:"time_scale"`
	TokenIDs bool          `yaml:"token_ids" default:"false" doc:"Whether the gateway asks for the numbers of tokens, and continues answers by these: continuation.token_ids of its config." aka:"exact"`
	Seed     int           `yaml:"seed" min:"0" max:"1000000000" default:"1" eg:"7" doc:"Of questions, faults and their victims."`
	Complete float64       `yaml:"complete" min:"0" max:"1" default:"0.999" eg:"0.999" doc:"Share of the answers that may be continued which have to arrive complete." aka:"target"`
	Traffic  trafficFile   `yaml:"traffic" doc:"What callers ask for. Shares are of all requests." aka:"load"`
	Hosts    []hostFile    `yaml:"hosts" required:"true" doc:"The fleet." aka:"fleet|host"`
	Faults   []faultFile   `yaml:"faults" otherwise:"none" doc:"What befalls it, one of them at a time." aka:"fault"`
}

type trafficFile struct {
	Tokens      []float64 `yaml:"tokens" single:"true" min:"1" max:"100000" otherwise:"20 to 200" eg:"[20, 200]" doc:"Tokens asked for; a number or [least, most]." aka:"length"`
	Plain       float64   `yaml:"plain" min:"0" max:"1" default:"0.2" eg:"0.2" doc:"Share that asks for no stream." aka:"plain_share"`
	Bound       float64   `yaml:"bound" min:"0" max:"1" default:"0.1" eg:"0.1" doc:"Share that must not be continued: tools, response_format, n, logprobs, seed." aka:"not_continuable"`
	Completions float64   `yaml:"completions" min:"0" max:"1" default:"0.1" eg:"0.1" doc:"Share of completions; the others are chats."`
	Usage       float64   `yaml:"usage" min:"0" max:"1" default:"0.5" eg:"0.5" doc:"Share of the streams that ask for usage."`
	Stop        float64   `yaml:"stop" min:"0" max:"1" default:"0.05" eg:"0.05" doc:"Share with a stop string."`
}

type hostFile struct {
	Name    string        `yaml:"name" required:"true" eg:"spot" doc:"A name of its own; more than one are called NAME-1, NAME-2 and so on." aka:"id"`
	Count   int           `yaml:"count" min:"1" max:"1000" default:"1" eg:"6" doc:"How many of these." aka:"number|n"`
	Kind    string        `yaml:"kind" words:"static|vast|runpod" default:"static" eg:"vast" doc:"Where it is rented: static hosts stand in the config and have no control plane." aka:"provider"`
	Class   string        `yaml:"class" default:"h100-llama-70b" eg:"a100-llama-70b" doc:"Kind of GPU and model, as fakecloud --list names them." aka:"gpu"`
	TPS     float64       `yaml:"tps" above:"0" max:"100000" default:"50" eg:"50" doc:"Tokens per second of one stream alone." aka:"speed"`
	TTFT    time.Duration `yaml:"ttft" above:"0" default:"200ms" eg:"200ms" doc:"Time to the first token, alone."`
	Seqs    int           `yaml:"max_num_seqs" min:"1" max:"100000" otherwise:"the class's" eg:"64" doc:"Sequences the engine runs at once." aka:"seqs"`
	Workers int           `yaml:"workers" min:"1" max:"100" default:"2" eg:"2" doc:"Of runpod: workers that are up."`
	Plain   bool          `yaml:"no_token_ids" default:"false" doc:"Of static: it knows no token numbers." aka:"plain"`
	Native  bool          `yaml:"native" default:"false" doc:"Of runpod: native jobs only, never the OpenAI route."`
}

type faultFile struct {
	Do     string      `yaml:"do" required:"true" words:"kill|exit|dark|vanish|engine|network|outbid|leave|offline|restart|worker" eg:"kill" doc:"What befalls a host: docs/chaos.md." aka:"what|fault"`
	Weight float64     `yaml:"weight" above:"0" max:"1000000" default:"1" eg:"3" doc:"How often, beside the others."`
	Hosts  string      `yaml:"hosts" otherwise:"all that it can befall" eg:"spot" doc:"Name of the hosts." aka:"host"`
	Engine []string    `yaml:"engine" single:"true" eg:"[\"stall,after=20,p=0.5\"]" doc:"Of engine: the fake cloud's faults, in requests that begin meanwhile." aka:"faults"`
	Toxics []toxicFile `yaml:"toxics" doc:"Of network: what ails the way." aka:"toxic"`
}

type toxicFile struct {
	Kind    string        `yaml:"kind" required:"true" words:"latency|bandwidth|reset|timeout|slicer" eg:"latency" doc:"Toxiproxy's word."`
	Delay   time.Duration `yaml:"delay" otherwise:"0s" eg:"300ms" doc:"Of latency: of all data. Of reset and timeout: until then."`
	Jitter  time.Duration `yaml:"jitter" otherwise:"0s" eg:"100ms" doc:"Of latency: more or less."`
	KBps    int           `yaml:"kb_per_second" min:"1" max:"1000000" default:"10" eg:"10" doc:"Of bandwidth."`
	Upwards bool          `yaml:"upwards" default:"false" doc:"On what is sent to the host, instead of what it sends."`
}

//go:embed scenarios/*.yaml
var embedded embed.FS //nolint:gochecknoglobals // go:embed wants one

// Builtin lists the names of the built-in scenarios.
func Builtin() (names []string) {
	entries, err := fs.ReadDir(embedded, "scenarios")
	if err != nil {
		panic("BUG: no scenarios: " + err.Error())
	}
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Load reads a built-in scenario by its name, or the file of one. The error of a file is a *config.Problems.
func Load(name string, getenv func(string) (string, bool)) (*Scenario, error) {
	var f file
	if !slices.Contains(Builtin(), name) {
		if !strings.ContainsAny(name, "./\\") {
			return nil, fmt.Errorf("no scenario %q: want a file or one of %s", name, strings.Join(Builtin(), ", "))
		}
		return f.scenario(config.ReadDocument(name, &f, getenv))
	}
	src, err := embedded.ReadFile(path.Join("scenarios", name+".yaml"))
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return f.scenario(config.ParseDocument(name+".yaml", src, &f, getenv))
}

func (f *file) scenario(doc *config.Document) (*Scenario, error) {
	s := &Scenario{
		Name: f.Name, Title: f.Title, For: f.For, Streams: f.Streams, Every: f.Every, Down: f.Down, Keep: f.Keep, Speed: f.Speed, Seed: uint64(f.Seed),
		TokenIDs: f.TokenIDs, Complete: f.Complete,
		Traffic: Traffic{
			Plain: f.Traffic.Plain, Bound: f.Traffic.Bound, Completions: f.Traffic.Completions, Usage: f.Traffic.Usage, Stop: f.Traffic.Stop,
			Least: 20, Most: 200,
		},
	}
	switch t := f.Traffic.Tokens; len(t) {
	case 0:
	case 1:
		s.Traffic.Least, s.Traffic.Most = int(t[0]), int(t[0])
	default:
		s.Traffic.Least, s.Traffic.Most = int(t[0]), int(t[1])
		if len(t) > 2 || t[1] < t[0] {
			doc.Add("traffic.tokens", "is no range", "write one figure, or the least and the most: [20, 200]")
		}
	}
	if doc.Given("hosts") && len(f.Hosts) == 0 {
		doc.Add("hosts", "is empty", "a fleet needs a host")
	}
	for i := range f.Hosts {
		s.Hosts = append(s.Hosts, f.Hosts[i].host(doc, fmt.Sprintf("hosts[%d]", i), s.Hosts))
	}
	for i := range f.Faults {
		s.Faults = append(s.Faults, f.Faults[i].fault(doc, fmt.Sprintf("faults[%d]", i), s.Hosts))
	}
	if err := doc.Err(); err != nil {
		return nil, err
	}
	return s, s.withoutNetwork()
}

// withoutNetwork leaves out what this build cannot do. The error says that nothing is left.
func (s *Scenario) withoutNetwork() error {
	network := func(f FaultSpec) bool { return f.Do == Network }
	if HasNetwork || !slices.ContainsFunc(s.Faults, network) {
		return nil
	}
	s.Faults = slices.DeleteFunc(s.Faults, network)
	if len(s.Faults) == 0 {
		return fmt.Errorf("scenario %s needs toxiproxy, which this build does not have: build with -tags toxiproxy, or run make chaos", s.Name)
	}
	s.LeftOut = "network faults (this build has no toxiproxy)"
	return nil
}

func (h *hostFile) host(doc *config.Document, at string, before []HostSpec) HostSpec {
	s := HostSpec{Name: h.Name, Count: h.Count, Kind: Kind(h.Kind), TPS: h.TPS, TTFT: h.TTFT, Seqs: h.Seqs, Workers: h.Workers, Native: h.Native, Plain: h.Plain}
	if slices.ContainsFunc(before, func(b HostSpec) bool { return b.Name == h.Name }) && h.Name != "" {
		doc.Add(at+".name", fmt.Sprintf("%q is taken already", h.Name), "give each a name of its own")
	}
	var ok bool
	if s.Class, ok = fakecloud.ClassNamed(h.Class); !ok {
		var names []string
		for _, c := range fakecloud.Classes {
			names = append(names, c.Name)
		}
		doc.Add(at+".class", fmt.Sprintf("%q is no class", h.Class), "there are "+strings.Join(names, ", "))
	}
	if s.Seqs == 0 {
		s.Seqs = s.Class.MaxNumSeqs
	}
	for _, key := range []string{"workers", "native"} {
		if s.Kind != RunPod && doc.Given(at+"."+key) {
			doc.Add(at+"."+key, "is for runpod only", "delete the line")
		}
	}
	if s.Kind != Static && h.Plain {
		doc.Add(at+".no_token_ids", "is for static only", "delete the line")
	}
	return s
}

func (f *faultFile) fault(doc *config.Document, at string, hosts []HostSpec) FaultSpec {
	s := FaultSpec{Do: Do(f.Do), Weight: f.Weight, Hosts: f.Hosts}
	if f.Do == "" { // told already
		return s
	}
	if !slices.ContainsFunc(hosts, func(h HostSpec) bool { return s.befalls(h.Name, h.Kind) }) {
		doc.Add(at, fmt.Sprintf("%s can befall none of these hosts", f.Do), "docs/chaos.md tells which kinds of hosts it is for")
	}
	for i, text := range f.Engine {
		e, err := fakecloud.ParseFault(text)
		if err != nil {
			doc.Add(fmt.Sprintf("%s.engine[%d]", at, i), "cannot be read: "+err.Error(), "docs/chaos.md has examples")
		}
		s.Engine = append(s.Engine, e)
	}
	for _, t := range f.Toxics {
		s.Toxics = append(s.Toxics, Toxic(t))
	}
	for key, of := range map[string]Do{"engine": Engine, "toxics": Network} {
		given := doc.Given(at + "." + key)
		switch {
		case given && s.Do != of:
			doc.Add(at+"."+key, fmt.Sprintf("is for %s only", of), "delete the line")
		case !given && s.Do == of:
			doc.Add(at, "needs "+key, "")
		}
	}
	return s
}

// befalls says whether it can happen to a host.
func (f *FaultSpec) befalls(name string, k Kind) bool {
	return f.Do.suffers(k) && (f.Hosts == "" || f.Hosts == name)
}
