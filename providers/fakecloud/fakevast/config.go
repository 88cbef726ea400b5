package fakevast

import (
	"cmp"
	"net/http"
	"time"

	"headrace/providers/fakecloud"
)

// Config sets a Cloud up. The zero value has the key "vast-key", no limits and no waiting at all.
type Config struct {
	APIKey string  // of the account; default "vast-key"
	UserID int64   // default 1001
	Credit float64 // USD; default 25
	// TimeScale divides every duration: lives of instances, lags, what the engines take. 0 means that nothing waits.
	TimeScale float64
	// EngineScale is TimeScale for the engines of the hosts alone; 0 means TimeScale, less than 0 no waiting.
	EngineScale float64
	Seed        uint64 // of tokens, ports and secrets

	RateLimits bool     // keep the minimum intervals between calls
	RateScale  float64  // divides the intervals; default 1
	RateBody   RateBody // how a 429 looks; by default each time otherwise

	KeyStatus    int           // status for a key that nobody has; default 404
	DetectionLag time.Duration // what the network does, the API tells that much later
	OfflineAfter time.Duration // a silent host is "unknown" after DetectionLag and "offline" this much later; default 1 min
	WebhookDelay time.Duration // from the API's knowing to the delivery; default 5 s
	OutbidGrace  time.Duration // an outbid instance serves that much longer after the API and webhooks have told of it; 0: it is gone before they do
	StopTakes    time.Duration // a stop that was asked for; default 10 s
	Boot         Boot          // of instances that have none of their own
	PortsSurvive bool          // an instance that comes back keeps its port; by default it gets another
	Hazards      Hazard        // of the rows of all instances
	ProxyHold    time.Duration // how long the OpenAI proxy waits for a worker before 504; default 5 min
	KeepIPs      bool          // an instance that is not running still shows the address it had

	StrictWebhooks bool // take only https webhooks, as the service does; by default http on loopback is fine too
	DoubleWebhooks bool // deliver each event twice with the same id: at least once

	Now func() time.Time // what the API takes for the time; default time.Now
}

func (c *Config) fill() {
	c.APIKey = cmp.Or(c.APIKey, "vast-key")
	c.UserID = cmp.Or(c.UserID, 1001)
	c.Credit = cmp.Or(c.Credit, 25)
	c.EngineScale = cmp.Or(c.EngineScale, c.TimeScale)
	c.RateScale = cmp.Or(c.RateScale, 1)
	c.KeyStatus = cmp.Or(c.KeyStatus, 404)
	c.OfflineAfter = cmp.Or(c.OfflineAfter, time.Minute)
	c.WebhookDelay = cmp.Or(c.WebhookDelay, 5*time.Second)
	c.StopTakes = cmp.Or(c.StopTakes, 10*time.Second)
	c.ProxyHold = cmp.Or(c.ProxyHold, 5*time.Minute)
	c.Boot.fill(Boot{Provision: 10 * time.Second, Pull: 90 * time.Second, Ports: 5 * time.Second, Model: 3 * time.Minute})
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Boot is how long the steps to a serving instance take; what is 0 is the Cloud's.
type Boot struct {
	Provision time.Duration // no status yet
	Pull      time.Duration // loading: the image is fetched; not when it is there already
	Ports     time.Duration // running, without ports
	Model     time.Duration // running with ports, until the model is loaded
}

func (b *Boot) fill(from Boot) {
	b.Provision = cmp.Or(b.Provision, from.Provision)
	b.Pull = cmp.Or(b.Pull, from.Pull)
	b.Ports = cmp.Or(b.Ports, from.Ports)
	b.Model = cmp.Or(b.Model, from.Model)
}

// Hazard is what is odd in the rows of an instance; they may be or-ed.
type Hazard uint32

// Hazards.
const (
	IPNewline      Hazard = 1 << iota // a line end behind public_ipaddr
	IPv6Twin                          // each port is mapped at :: too, first
	IPv6Only                          // ports are mapped at :: only
	PortsList                         // ports is a list of numbers, everywhere
	PortsEmptyList                    // ports is an empty list
	PortsNull                         // ports is null though the instance runs
	ByIDPortsList                     // ports is a list of numbers in the answer by id only
	ByIDArray                         // the answer by id holds a list of one
	IntFloats                         // figures that happen to have no fraction come as integers: 88 and not 88.0
	FloatInts                         // counts come with a fraction: 1.0
	StringNumbers                     // prices come as strings
	NullUtil                          // gpu_util and gpu_temp are null
	StaleUtil                         // gpu_util of an instance that does not run is what it was
	ExtraFields                       // fields that no one has heard of
	NullInstances                     // an empty list of instances is null; of the Cloud only
	NewStates                         // states are words that are not documented: "restarting" while it starts, the first time or again
	NullLabel                         // no label is null instead of ""
	ListPortsNull                     // ports is null in lists only
)

// Template is what stands in front of the model.
type Template uint8

// Templates.
const (
	PlainVLLM Template = iota // vllm/vllm-openai, its port mapped as it is
	Portal                    // an image of Vast's with Caddy in front
)

// KeyPlace is where the API shows the key that the model's server asks for.
type KeyPlace uint8

// Places. A Portal knows KeyInEnv and KeyHidden.
const (
	KeyInArgs KeyPlace = iota // --api-key in image_args
	KeyInEnv                  // VLLM_API_KEY, or WEB_PASSWORD with a Portal, in extra_env
	KeyHidden                 // nowhere
)

// InstanceConfig sets an instance up. The zero value is a verified on-demand RTX 4090 that serves already.
type InstanceConfig struct {
	ID        int64 // default the next free one
	Label     string
	Machine   int64 // default one of its own
	HostOwner int64 // host_id; default one of its own

	IsBid       bool
	DPHBase     float64 // USD per hour for the GPU, the bid if IsBid; default 0.40
	MinBid      float64 // USD per hour; default 0.6 of DPHBase
	StorageCost float64 // USD per GB and month; default 0.15
	DiskGB      float64 // default 50
	UpPerTB     float64 // USD per TB sent
	DownPerTB   float64 // USD per TB received
	Discount    float64 // USD per hour that a reservation saves

	GPUName      string  // default "RTX 4090"
	NumGPUs      int     // default 1
	GPURAMMB     int     // default 24564
	Geolocation  string  // default "California, US"; "-" for null
	Verification string  // default "verified"
	HostingType  int     // 1 is a data centre
	Reliability  float64 // default 0.99
	StaticIP     bool
	EndDate      time.Time // of the contract; default in 30 days

	Image         string            // default of the Template
	Args          []string          // image_args
	Env           map[string]string // extra_env
	ContainerPort int               // default 8000
	NoPortInEnv   bool              // extra_env does not tell "-p 8000:8000"
	OtherPorts    []int             // further container ports that are mapped, to where nobody listens
	TemplateHash  string
	TemplateName  string

	Template Template
	APIKey   string // what the model's server asks for; "" asks for none, with a Portal for its token
	KeyIn    KeyPlace
	Portal   PortalConfig

	Class      fakecloud.Class
	Models     []string
	TPS        float64
	TTFT       time.Duration
	MaxNumSeqs int

	IP       string // loopback address; default 127.0.0.1
	HostPort int    // default a free one
	Boot     *Boot  // how it boots; nil for one that serves already
	Hazards  Hazard

	front    func(http.Handler) http.Handler // of a serverless worker
	frontTLS bool
}

func (c *InstanceConfig) fill(id int64) {
	c.ID = cmp.Or(c.ID, id)
	c.Machine = cmp.Or(c.Machine, 100000+c.ID%100000)
	c.HostOwner = cmp.Or(c.HostOwner, 50000+c.ID%50000)
	c.DPHBase = cmp.Or(c.DPHBase, 0.40)
	c.MinBid = cmp.Or(c.MinBid, 0.6*c.DPHBase)
	c.StorageCost = cmp.Or(c.StorageCost, 0.15)
	c.DiskGB = cmp.Or(c.DiskGB, 50)
	c.GPUName = cmp.Or(c.GPUName, "RTX 4090")
	c.NumGPUs = cmp.Or(c.NumGPUs, 1)
	c.GPURAMMB = cmp.Or(c.GPURAMMB, 24564)
	c.Geolocation = cmp.Or(c.Geolocation, "California, US")
	c.Verification = cmp.Or(c.Verification, "verified")
	c.Reliability = cmp.Or(c.Reliability, 0.99)
	c.ContainerPort = cmp.Or(c.ContainerPort, 8000)
	c.IP = cmp.Or(c.IP, "127.0.0.1")
	if c.Template == Portal {
		c.Image = cmp.Or(c.Image, "vastai/vllm:latest")
	}
	c.Image = cmp.Or(c.Image, "vllm/vllm-openai:latest")
	if c.Class.Name == "" {
		c.Class = fakecloud.Classes[2]
	}
	if len(c.Models) == 0 {
		c.Models = []string{c.Class.Model}
	}
}
