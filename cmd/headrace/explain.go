package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"headrace/gateway/config"
	"headrace/router"
)

// explainOptions are the flags of explain.
type explainOptions struct {
	config       configFlags
	output       string
	model        string
	promptTokens int
	maxTokens    int
	policy       string
	ttft, tps    string
	trust        string
	region       string
	session      string
	key          string
	unit, arm    string
}

func explainCommand() *cobra.Command {
	var o explainOptions
	c := &cobra.Command{
		Use:   "explain [REQUEST-ID]",
		Short: "Say why a request went where it went, or where one would go",
		Long: `Ask a running gateway why a request went to its host: what every candidate would have cost, how fast it was expected to
be, what kept the others from it, and what came of it. The request's ID is in its answer's header x-request-id; the newest
1,024 decisions are kept, one for each attempt.

With --model tell where such a request would go now: where an experiment is on the model, one without a unit, of --unit, or of --arm.
It is not sent, and nothing is reserved for it.
Without arguments list the newest 10 decisions.

Exit codes: 0 all is well, 1 no gateway answers, it knows no such request or model, or no host can take the request that is
asked about, 2 the command line or the config is wrong.`,
		Example: `  headrace explain
  headrace explain req_2vjvuxn2hcd6wq3a
  headrace explain --model llama-70b --prompt-tokens 2000 --policy latency
  headrace explain --model llama-70b --ttft 800ms --region EU --admin 127.0.0.1:9090 -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := o.query(cmd)
			switch {
			case o.output != "table" && o.output != "json":
				return &exitError{2, fmt.Errorf("--output %q: want table or json", o.output)}
			case len(args) == 1 && len(q) > 0:
				return &exitError{2, errors.New("give the ID of a request that was, or --model and what else describes one that could be, not both")}
			case len(args) == 1 && args[0] == "":
				return &exitError{2, errors.New("the request's ID is empty")}
			case len(q) > 0 && o.model == "":
				return &exitError{2, errors.New("--model is missing: where a request would go depends on its model first of all")}
			}
			a, err := o.config.adminAPI()
			if err != nil {
				return err
			}
			e := explainer{api: a, out: cmd.OutOrStdout(), json: o.output == "json", now: time.Now(), width: screenWidth(cmd.OutOrStdout())}
			switch {
			case len(args) == 1:
				return e.request(cmd.Context(), args[0])
			case len(q) > 0:
				return e.hypothetical(cmd.Context(), q)
			}
			return e.newest(cmd.Context())
		},
	}
	f := c.Flags()
	f.StringVarP(&o.config.file, "config", "c", "", "YAML file that names the admin address (default: headrace.yaml in the working directory, if there is one)")
	f.StringVar(&o.config.overrides.Admin, "admin", "", "address of the gateway's admin API (default: the config's, or 127.0.0.1:9090)")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	f.StringVar(&o.model, "model", "", "a request for this model")
	f.IntVar(&o.promptTokens, "prompt-tokens", 500, "with a prompt of that many tokens")
	f.IntVar(&o.maxTokens, "max-tokens", 0, "that takes at most so many tokens of an answer (0: no such limit)")
	f.StringVar(&o.policy, "policy", "", router.Policies("or")+" (default: the model's)")
	f.StringVar(&o.ttft, "ttft", "", "the most time to the first token, such as 800ms (default: the model's)")
	f.StringVar(&o.tps, "tps", "", "the least tokens per second of the stream (default: the model's)")
	f.StringVar(&o.trust, "trust", "", "community, verified, datacenter or secure: least trust of the host")
	f.StringVar(&o.region, "region", "", "regions of the host parted by commas, such as EU or US-KS-2,CA")
	f.StringVar(&o.session, "session", "", "of this session (x-headrace-session)")
	f.StringVar(&o.key, "key", "", "of this key, by its name or ID: each key has sessions of its own")
	f.StringVar(&o.unit, "unit", "", "of this unit of the model's experiment: a user, session or key, as the first of its assign_by has it")
	f.StringVar(&o.arm, "arm", "", "of this arm, such as awq-canary=canary (x-headrace-arm)")
	for name, words := range map[string][]string{
		"policy": policyWords(), "output": {"table", "json"}, "trust": {"community", "verified", "datacenter", "secure"},
	} {
		if err := c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

func policyWords() (words []string) {
	for p := router.PolicyCost; ; p++ {
		if _, ok := router.ParsePolicy(p.String()); !ok {
			return words
		}
		words = append(words, p.String())
	}
}

// query is the request that is asked about as the admin API wants it, empty when none is.
func (o *explainOptions) query(cmd *cobra.Command) url.Values {
	q := url.Values{}
	for name, flag := range map[string]struct{ flag, value string }{
		"model": {"model", o.model}, "prompt_tokens": {"prompt-tokens", strconv.Itoa(o.promptTokens)}, "max_tokens": {"max-tokens", strconv.Itoa(o.maxTokens)},
		"policy": {"policy", o.policy}, "ttft": {"ttft", o.ttft}, "tps": {"tps", o.tps}, "trust": {"trust", o.trust}, "region": {"region", o.region}, "session": {"session", o.session},
		"key": {"key", o.key}, "unit": {"unit", o.unit}, "arm": {"arm", o.arm},
	} {
		if cmd.Flags().Changed(flag.flag) {
			q.Set(name, flag.value)
		}
	}
	if len(q) > 0 && !q.Has("prompt_tokens") {
		q.Set("prompt_tokens", strconv.Itoa(o.promptTokens))
	}
	return q
}

// adminAPI is where the gateway of this config, or of --admin, tells about itself.
type adminAPI struct {
	address string // as given
	base    string
	client  *http.Client
}

// adminAPI finds the address: a gateway without hosts of its own (zero config) still has one.
func (f *configFlags) adminAPI() (*adminAPI, error) {
	if f.file == "" && f.overrides.Admin == "" {
		if _, err := os.Stat(defaultFile); err == nil {
			f.file = defaultFile
		}
	}
	addr := f.overrides.Admin
	if addr == "" {
		cfg, err := config.Load(f.file, f.overrides, os.LookupEnv)
		if err != nil {
			return nil, &exitError{2, badConfig(err)}
		}
		addr = cfg.Admin
	}
	base, err := adminURL(addr)
	if err != nil {
		return nil, err
	}
	a := adminAt(base)
	a.address = addr
	return a, nil
}

// adminAt is the admin API at a URL.
func adminAt(base string) *adminAPI {
	return &adminAPI{address: base, base: base, client: &http.Client{Timeout: 10 * time.Second}}
}

// envAdminKey has the key that opens the admin API, where that asks for one.
const envAdminKey = "HEADRACE_ADMIN_KEY"

// adminURL is where a client on this machine finds the admin API that listens on addr.
func adminURL(addr string) (string, error) {
	if addr == "off" {
		return "", &exitError{2, errors.New("the admin API is off (admin: off), so it cannot be asked")}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", &exitError{2, fmt.Errorf("admin address %q: want host:port", addr)}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// get reads the JSON at path into out. The error is an *exitError.
func (a *adminAPI) get(ctx context.Context, path string, q url.Values, out any) error {
	return a.call(ctx, http.MethodGet, path+"?"+q.Encode(), nil, out)
}

// call sends body, if it is not nil, and reads the JSON of the answer into out. The error is an *exitError.
func (a *adminAPI) call(ctx context.Context, method, path string, body, out any) error {
	var send io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return &exitError{2, err}
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, send)
	if err != nil {
		return &exitError{2, err}
	}
	if key := os.Getenv(envAdminKey); key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	res, err := a.client.Do(req)
	if err != nil {
		return &exitError{1, fmt.Errorf("no gateway answers at %s: name the admin address of one that runs with --admin", a.address)}
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return &exitError{1, fmt.Errorf("read the answer of %s: %w", a.address, err)}
	}
	if res.StatusCode/100 == 2 {
		if err := json.Unmarshal(answer, out); err != nil {
			return &exitError{1, fmt.Errorf("what answers at %s is not the admin API of this version: %w", a.address, err)}
		}
		return nil
	}
	var said struct {
		Error struct{ Code, Message string }
	}
	_ = json.Unmarshal(answer, &said) // the status code says it all
	switch {
	case said.Error.Code == "" || said.Error.Code == "unknown_url":
		return &exitError{1, fmt.Errorf("what answers at %s is not the admin API of this version: %s for %s", a.address, res.Status, path)}
	case res.StatusCode == http.StatusBadRequest:
		return &exitError{2, errors.New(said.Error.Message)}
	}
	return &exitError{1, errors.New(said.Error.Message)}
}

// explainer asks a gateway and prints.
type explainer struct {
	api   *adminAPI
	out   io.Writer
	json  bool
	now   time.Time
	width int // of the screen, 0 where there is none
}

const (
	decisionsListed = 10
	attemptsAsked   = 100
)

// settledRequest is what explain reads of a request at /admin/v1/requests. Nil is unknown.
type settledRequest struct {
	Status   int       `json:"status"`
	Class    string    `json:"class"`
	At       time.Time `json:"at"`
	Endpoint string    `json:"endpoint"`
	TTFT     *float64  `json:"ttft_ms"`
	Duration float64   `json:"duration_ms"`
	TPS      *float64  `json:"tokens_per_second"`
	Prompt   *int64    `json:"prompt_tokens"`
	Cached   *int64    `json:"cached_tokens"`
	Output   *int64    `json:"output_tokens"`
	USD      *float64  `json:"usd"`
	Arm      string    `json:"arm"`
	OutOfArm bool      `json:"out_of_arm"`
	Forced   bool      `json:"arm_forced"`
}

type explainedRequest struct {
	Decisions []router.Explanation `json:"decisions"` // the first attempt first
	Request   json.RawMessage      `json:"request"`   // its record; null while it runs, or when it was too long ago
}

// request explains one that was.
func (e *explainer) request(ctx context.Context, id string) error {
	var x explainedRequest
	if err := e.api.get(ctx, "/admin/v1/decisions", url.Values{"request_id": {id}, "n": {strconv.Itoa(attemptsAsked)}}, &x); err != nil {
		return err
	}
	var settled struct {
		Requests []json.RawMessage `json:"requests"`
	}
	if err := e.api.get(ctx, "/admin/v1/requests", url.Values{"request_id": {id}, "n": {"1"}}, &settled); err != nil {
		return err
	}
	if len(x.Decisions) == 0 {
		why := "it was never here, or other requests came since"
		if len(settled.Requests) > 0 {
			why = "it ended before one was made, or it was too long ago; /admin/v1/requests?request_id=" + url.QueryEscape(id) + " tells how it ended"
		}
		return &exitError{1, fmt.Errorf("the gateway at %s has no decision of request %q: %s", e.api.address, id, why)}
	}
	slices.Reverse(x.Decisions)
	x.Request = json.RawMessage("null")
	var rec *settledRequest
	if len(settled.Requests) > 0 {
		x.Request = settled.Requests[0]
		if err := json.Unmarshal(x.Request, &rec); err != nil {
			return &exitError{1, fmt.Errorf("what answers at %s is not the admin API of this version: %w", e.api.address, err)}
		}
	}
	if e.json {
		return e.encode(&x)
	}
	_, err := io.WriteString(e.out, requestText(x.Decisions, rec, e.now, e.width))
	return err
}

// hypothetical explains where a request would go.
func (e *explainer) hypothetical(ctx context.Context, q url.Values) error {
	var x router.Explanation
	err := e.api.get(ctx, "/admin/v1/explain", q, &x)
	if err != nil {
		return err
	}
	if e.json {
		err = e.encode(&x)
	} else {
		_, err = io.WriteString(e.out, hypotheticalText(&x, e.width))
	}
	if err == nil && x.Winner == "" {
		err = &exitError{code: 1} // it is said already
	}
	return err
}

// newest lists the newest decisions.
func (e *explainer) newest(ctx context.Context) error {
	var x struct {
		Decisions []router.Explanation `json:"decisions"`
	}
	if err := e.api.get(ctx, "/admin/v1/decisions", url.Values{"n": {strconv.Itoa(decisionsListed)}}, &x); err != nil {
		return err
	}
	if e.json {
		return e.encode(&x)
	}
	_, err := io.WriteString(e.out, decisionsText(x.Decisions, e.now, e.width))
	return err
}

func (e *explainer) encode(v any) error {
	enc := json.NewEncoder(e.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
