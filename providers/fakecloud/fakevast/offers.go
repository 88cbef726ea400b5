package fakevast

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// offer is a machine that can be rented.
type offer struct {
	cfg       InstanceConfig
	cancelled bool // somebody took it at this moment
}

// AddOffer offers a machine as cfg describes it and returns the id of the ask. Who rents it gets an instance so made;
// cfg.DPHBase is its price on demand, cfg.MinBid the lowest bid that wins.
func (c *Cloud) AddOffer(cfg InstanceConfig) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastOffer++
	cfg.fill(c.lastOffer)
	c.offers[c.lastOffer] = &offer{cfg: cfg}
	return c.lastOffer
}

// RemoveOffer takes an offer away; whoever tries to rent it learns of no_such_ask with 404, or 410 if it went while
// they asked.
func (c *Cloud) RemoveOffer(id int64, whileAsked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.offers[id]; o != nil && whileAsked {
		o.cancelled = true
		return
	}
	delete(c.offers, id)
}

// offerColumns are those that offers have in common with instances.
var offerColumns = []string{
	"machine_id", "host_id", "bundle_id", "gpu_name", "num_gpus", "gpu_ram", "gpu_totalram", "gpu_frac", "dlperf",
	"total_flops", "compute_cap", "cuda_max_good", "cpu_cores_effective", "cpu_ram", "disk_space", "inet_up", "inet_down",
	"inet_up_cost", "inet_down_cost", "internet_up_cost_per_tb", "internet_down_cost_per_tb", "min_bid", "dph_base",
	"dph_total", "storage_cost", "storage_total_cost", "search", "instance", "reliability2", "verification", "hosting_type",
	"geolocation", "country_code", "start_date", "end_date", "direct_port_count", "static_ip", "credit_discount",
}

// row is the offer for a kind of rental.
func (o *offer) row(c *Cloud, id int64, bid bool, diskGB float64) map[string]any {
	k := o.cfg
	k.DiskGB = diskGB
	if bid {
		k.DPHBase = k.MinBid
	}
	now := c.cfg.Now()
	if k.EndDate.IsZero() {
		k.EndDate = now.AddDate(0, 6, 0)
	}
	all := (&Instance{c: c, cfg: k, started: now}).row(now, true)
	row := map[string]any{}
	for _, name := range offerColumns {
		row[name] = all[name]
	}
	total, _ := all["dph_total"].(float64)
	gpu, _ := all["gpu_name"].(string)
	maps.Copy(row, map[string]any{
		"id": id, "ask_contract_id": id, "is_bid": bid, "external": nil, "rentable": true, "rented": false,
		"reliability": k.Reliability, "discounted_dph_total": total, "gpu_ids": []int{0}, "geolocode": 1, "driver_version": "570.86.16",
		"duration": k.EndDate.Sub(now).Seconds(), "webpage": nil, "score": 106.6 / total, "dlperf_per_dphtotal": 106.6 / total,
		"flops_per_dphtotal": 82.9 / total, "cpu_name": "AMD EPYC 7763", "cpu_cores": 128, "cpu_ghz": 3.5, "gpu_arch": "nvidia", "gpu_mem_bw": 1008.0,
		"pcie_bw": 24.2, "disk_bw": 3000.0, "disk_name": "nvme", "mobo_name": "ROMED8-2T", "has_avx": 1, "gpu_lanes": 16,
		"pci_gen": 4.0, "gpu_display_active": false, "gpu_max_power": 450.0, "gpu_max_temp": 90.0, "os_version": "22.04",
		"logo": "/static/logos/vastai_small2.png", "time_remaining": "", "time_remaining_isbid": "", "public_ipaddr": "127.0.0.1",
		"vericode": 1, "verified": k.Verification == "verified", "datacenter": k.HostingType == 1, "gpu_names": gpu,
	})
	return row
}

// settings of a search that are no filters.
var settings = []string{"limit", "type", "order", "allocated_storage", "disable_bundling", "select_cols", "extra_filters"}

// searchOffers is POST /api/v0/bundles/.
func (c *Cloud) searchOffers(a *asked) {
	q := map[string]any{}
	if a.decode(&q) {
		c.search(a, q)
	}
}

// searchAsks is PUT /api/v0/search/asks/.
func (c *Cloud) searchAsks(a *asked) {
	var body struct {
		Q map[string]any `json:"q"`
	}
	if a.decode(&body) {
		c.search(a, body.Q)
	}
}

func (c *Cloud) search(a *asked, q map[string]any) {
	filters := map[string]map[string]any{}
	for name, v := range q {
		if slices.Contains(settings, name) {
			continue
		}
		ops, ok := v.(map[string]any)
		if !ok {
			a.fail(http.StatusBadRequest, "invalid_request", name+" is no filter")
			return
		}
		for op := range ops {
			if !slices.Contains(operators, op) {
				a.fail(http.StatusBadRequest, "invalid_request", "unknown operator "+op)
				return
			}
		}
		filters[name] = ops
	}
	kind, _ := q["type"].(string)
	disk, ok := number(q["allocated_storage"])
	if !ok {
		disk = 8
	}
	var by []order
	if list, ok := q["order"].([]any); ok {
		for _, one := range list {
			if pair, ok := one.([]any); ok && len(pair) == 2 {
				by = append(by, order{fmt.Sprint(pair[0]), fmt.Sprint(pair[1])})
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var rows []map[string]any
	for _, id := range slices.Sorted(maps.Keys(c.offers)) {
		row := c.offers[id].row(c, id, kind == "bid", disk)
		seen := maps.Clone(row) // as filters see it
		place, _ := row["geolocation"].(string)
		seen["geolocation"] = place[max(0, len(place)-2):]
		seen["external"] = false
		if matches(seen, filters) {
			rows = append(rows, row)
		}
	}
	sortRows(rows, by)
	if n, ok := number(q["limit"]); ok && int(n) < len(rows) {
		rows = rows[:max(0, int(n))]
	}
	dressed := []any{}
	for _, r := range rows {
		dressed = append(dressed, (&Instance{c: c}).dress(r))
	}
	a.json(map[string]any{"offers": dressed})
}

// gpuNames is GET /api/v0/gpu_names/unique/, which the vendor's command line asks at each start, without a key.
func (c *Cloud) gpuNames(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := map[string]bool{}
	for _, o := range c.offers {
		names[o.cfg.GPUName] = true
	}
	a.json(map[string]any{"gpu_names": append([]string{}, slices.Sorted(maps.Keys(names))...), "success": true})
}

// creation is the body of PUT /api/v0/asks/{id}/.
type creation struct {
	Image    string          `json:"image"`
	Disk     *float64        `json:"disk"`
	Label    *string         `json:"label"`
	Runtype  string          `json:"runtype"`
	ArgsStr  string          `json:"args_str"`
	Args     json.RawMessage `json:"args"`
	Onstart  *string         `json:"onstart"`
	Env      json.RawMessage `json:"env"`
	Price    *float64        `json:"price"`
	Template *string         `json:"template_hash_id"`
}

// Limits of a creation, in bytes.
const (
	maxArgs = 4096
	maxEnv  = 32768
	maxBid  = 128 // USD per hour for a machine
)

// create is PUT /api/v0/asks/{id}/.
func (c *Cloud) create(a *asked) {
	var n creation
	if !a.decode(&n) {
		return
	}
	c.mu.Lock()
	o, credit := c.offers[a.id], c.credit
	c.mu.Unlock()
	switch {
	case o == nil:
		msg := "error 404/3603: no_such_ask Instance type by id " + itoa(a.id) + " is not available."
		a.fail(http.StatusNotFound, "no_such_ask", msg)
		return
	case o.cancelled:
		writeJSON(a.w, http.StatusGone, map[string]any{"success": false, "error": "no_such_ask", "msg": "The ask is gone.", "ask_id": a.id})
		return
	case credit <= 0:
		a.fail(http.StatusBadRequest, "missing_billing", "Your account balance is not positive.")
		return
	}
	cfg, err := n.apply(o.cfg)
	if err != nil {
		code := "invalid_args"
		if errors.Is(err, errPrice) {
			code = "invalid_price"
		}
		a.fail(http.StatusBadRequest, code, err.Error())
		return
	}
	cfg.ID = 0
	if cfg.Boot == nil {
		cfg.Boot = &Boot{}
	}
	low := n.Price != nil && *n.Price < o.cfg.MinBid
	i, err := c.add(cfg)
	if err != nil {
		a.fail(http.StatusInternalServerError, "server_error", err.Error())
		return
	}
	if low { // made all the same, and stopped
		i.op.Lock()
		i.begin(step{do: func() { i.level(off) }, tell: func(v *view) { i.halt(v, "loading") }})
		i.op.Unlock()
		writeJSON(a.w, http.StatusBadRequest, map[string]any{
			"success": false, "error": "invalid_price", "msg": "The bid is too low.", "new_contract": i.ID(),
		})
		return
	}
	c.mu.Lock()
	key := c.hex(64)
	c.mu.Unlock()
	a.json(map[string]any{"success": true, "new_contract": i.ID(), "instance_api_key": key})
}

var errPrice = errors.New("price is out of range")

// apply is the instance that comes of an offer.
func (n *creation) apply(cfg InstanceConfig) (InstanceConfig, error) {
	env := map[string]string{}
	if len(n.Env) > 0 && string(n.Env) != "null" {
		var raw map[string]any
		if err := json.Unmarshal(n.Env, &raw); err != nil {
			return cfg, errors.New("env must be a dict")
		}
		for k, v := range raw {
			env[k] = fmt.Sprint(v)
		}
	}
	args := strings.Fields(n.ArgsStr)
	if len(n.Args) > 0 && n.ArgsStr == "" {
		var text string
		if json.Unmarshal(n.Args, &args) != nil && json.Unmarshal(n.Args, &text) == nil {
			args = strings.Fields(text)
		}
	}
	switch {
	case n.Image == "" && n.Template == nil:
		return cfg, errors.New("image is missing")
	case n.Label != nil && len(*n.Label) > maxLabel, len(strings.Join(args, " ")) > maxArgs, len(n.Env) > maxEnv:
		return cfg, errors.New("an argument is too long")
	case n.Price != nil && (*n.Price < minPrice || *n.Price > maxBid):
		return cfg, errPrice
	}
	cfg.DiskGB = 8
	if n.Disk != nil {
		cfg.DiskGB = *n.Disk
	}
	if n.Label != nil {
		cfg.Label = *n.Label
	}
	if n.Image != "" {
		cfg.Image = n.Image
	}
	if n.Template != nil {
		cfg.TemplateHash = *n.Template
	}
	if n.Price != nil {
		cfg.IsBid, cfg.DPHBase = true, *n.Price
	}
	cfg.NoPortInEnv = true
	for name := range env {
		if ports, ok := strings.CutPrefix(name, "-p "); ok {
			_, inner, _ := strings.Cut(ports, ":")
			if p, err := strconv.Atoi(inner); err == nil {
				cfg.ContainerPort, cfg.NoPortInEnv = p, false
				delete(env, name)
			}
		}
	}
	cfg.Env, cfg.Args, cfg.APIKey = env, args, env["VLLM_API_KEY"]
	cfg.KeyIn = KeyInEnv
	if at := slices.Index(args, "--api-key"); at >= 0 && at+1 < len(args) {
		cfg.APIKey, cfg.KeyIn = args[at+1], KeyHidden // it is in the arguments already
	}
	return cfg, nil
}
