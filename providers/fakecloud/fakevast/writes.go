package fakevast

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

// change is the body of a PUT to an instance, or to several.
type change struct {
	State *string      `json:"state"`
	Label *string      `json:"label"`
	IDs   []int64      `json:"ids"`
	Insts []int64      `json:"instance_ids"`
	Price *json.Number `json:"price"`
	Row   *int64       `json:"pending_price_increase_id"`
}

const maxLabel = 256

// found returns the instance of the path, or answers that there is none.
func (c *Cloud) found(a *asked) *Instance {
	i := c.Instance(a.id)
	if i == nil {
		a.fail(http.StatusNotFound, "no_such_instance", "Instance "+itoa(a.id)+" not found.")
	}
	return i
}

// manage is PUT /api/v0/instances/{id}/.
func (c *Cloud) manage(a *asked) {
	var ch change
	if !a.decode(&ch) {
		return
	}
	if i := c.found(a); i != nil {
		c.change(a, i, &ch)
	}
}

// manageMany is PUT /api/v0/instances/.
func (c *Cloud) manageMany(a *asked) {
	var ch change
	if !a.decode(&ch) {
		return
	}
	if len(ch.IDs) == 0 {
		a.fail(http.StatusBadRequest, "invalid_args", "ids is missing")
		return
	}
	for n, id := range ch.IDs {
		i := c.Instance(id)
		if i == nil {
			a.fail(http.StatusNotFound, "no_such_instance", "Instance "+itoa(id)+" not found.")
			return
		}
		if n < len(ch.IDs)-1 {
			sub := &asked{w: &buffered{header: http.Header{}}, r: a.r}
			c.change(sub, i, &ch)
			continue
		}
		c.change(a, i, &ch)
	}
}

func (c *Cloud) change(a *asked, i *Instance, ch *change) {
	if ch.Label != nil && len(*ch.Label) > maxLabel {
		a.fail(http.StatusBadRequest, "label_too_long", "label is longer than 256 characters")
		return
	}
	if ch.Label != nil {
		i.Update(func(k *InstanceConfig) { k.Label = *ch.Label })
	}
	if ch.State == nil {
		a.json(map[string]any{"success": true})
		return
	}
	switch *ch.State {
	case "running":
		c.mu.Lock()
		broke := c.credit <= 0
		c.mu.Unlock()
		if broke {
			a.fail(http.StatusBadRequest, "missing_billing", "Your account balance is not positive.")
			return
		}
		if !i.Start() {
			a.fail(http.StatusOK, "resources_unavailable", "Required resources are currently unavailable, state change queued.")
			return
		}
	case "stopped":
		i.Stop()
	default:
		a.fail(http.StatusBadRequest, "invalid_args", "unknown state "+*ch.State)
		return
	}
	a.json(map[string]any{"success": true})
}

// destroy is DELETE /api/v0/instances/{id}/.
func (c *Cloud) destroy(a *asked) {
	if i := c.found(a); i != nil {
		i.Destroy()
		a.json(map[string]any{"success": true, "msg": "Instance destroyed."})
	}
}

// destroyMany is DELETE /api/v0/instances/.
func (c *Cloud) destroyMany(a *asked) {
	var ch change
	if !a.decode(&ch) {
		return
	}
	for _, id := range ch.Insts {
		if i := c.Instance(id); i != nil {
			i.Destroy()
		}
	}
	a.json(map[string]any{"success": true, "msg": "Instances destroyed."})
}

// Limits of a bid in USD per hour; the highest is for each GPU.
const (
	minPrice       = 0.001
	maxPricePerGPU = 32
)

// bid is PUT /api/v0/instances/bid_price/{id}/. A higher bid frees no GPU that is somebody else's.
func (c *Cloud) bid(a *asked) {
	var ch change
	if !a.decode(&ch) {
		return
	}
	i := c.found(a)
	if i == nil {
		return
	}
	k := i.Config()
	if !k.IsBid {
		a.fail(http.StatusBadRequest, "invalid_args", "Instance "+itoa(a.id)+" is not interruptible.")
		return
	}
	price := k.MinBid * 1.05 // one that wins
	if ch.Price != nil {
		p, err := ch.Price.Float64()
		if err != nil || p < minPrice || p > maxPricePerGPU*float64(k.NumGPUs) {
			a.fail(http.StatusBadRequest, "invalid_price", "price is out of range")
			return
		}
		price = p
	}
	i.SetPrice(price)
	a.json(map[string]any{"success": true})
}

// reboot is PUT /api/v0/instances/reboot/{id}/, and recycle.
func (c *Cloud) reboot(a *asked) {
	if i := c.found(a); i != nil {
		port := 0
		if c.cfg.PortsSurvive {
			_, port = i.where()
		}
		i.Restart(port, "")
		a.json(map[string]any{"success": true})
	}
}

// requestLogs is PUT /api/v0/instances/request_logs/{id}/: the log is at another address, some time later.
func (c *Cloud) requestLogs(a *asked) {
	if i := c.found(a); i != nil {
		a.json(map[string]any{
			"success": true, "result_url": c.ConsoleURL() + "/logs/C." + itoa(a.id) + ".log", "msg": "fetching logs",
		})
	}
}

// log is what result_url leads to; the first question comes too early.
func (c *Cloud) log(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.logsAsked[r.URL.Path]++
	early := c.logsAsked[r.URL.Path]%2 == 1
	c.mu.Unlock()
	if early {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write([]byte("INFO:     Started server process [1]\nINFO:     Application startup complete.\n"))
}

// priceIncrease is a new price that the host wants.
type priceIncrease struct {
	id         int64
	usdPerHour float64
	at         float64
}

// WantMore lets the host of the instance ask for a higher price, and returns the id of the row.
func (i *Instance) WantMore(usdPerHour float64) int64 {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	i.c.lastIncrease++
	i.pending = &priceIncrease{i.c.lastIncrease, usdPerHour, unix(i.c.cfg.Now())}
	return i.pending.id
}

// priceIncreases is GET /api/v0/instances/pending-price-increases/.
func (c *Cloud) priceIncreases(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows := []any{}
	for _, i := range c.all() {
		if p := i.pending; p != nil {
			rows = append(rows, map[string]any{
				"pending_price_increase_id": p.id, "contract_id": i.cfg.ID, "host_id": i.cfg.HostOwner,
				"new_gpu_costpersec": p.usdPerHour / 3600, "old_gpu_costpersec": i.cfg.DPHBase / 3600,
				"new_disk_ram_costpersec": nil, "old_disk_ram_costpersec": nil, "new_bwu_cost": nil, "old_bwu_cost": nil,
				"new_bwd_cost": nil, "old_bwd_cost": nil, "new_platform_fee": nil, "old_platform_fee": nil,
				"contract_end_date": unix(i.cfg.EndDate), "ask_end_date": unix(i.cfg.EndDate), "created_at": p.at,
			})
		}
	}
	a.json(map[string]any{"success": true, "count": len(rows), "truncated": false, "pending_price_increases": rows})
}

// settle is PUT /api/v0/instances/accept-price-increase/ and reject.
func (c *Cloud) settle(a *asked) {
	var ch change
	if !a.decode(&ch) {
		return
	}
	if ch.Row == nil {
		a.fail(http.StatusBadRequest, "invalid_args", "pending_price_increase_id is missing")
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.all(), func(i *Instance) bool { return i.pending != nil && i.pending.id == *ch.Row })
	if at < 0 {
		writeJSON(a.w, http.StatusNotFound, map[string]any{"success": false, "error": "no_pending_price_increase"})
		return
	}
	i := c.all()[at]
	if strings.Contains(a.r.URL.Path, "/accept-") {
		i.pay()
		i.cfg.DPHBase = i.pending.usdPerHour
	}
	i.pending = nil
	a.json(map[string]any{"success": true, "pending_price_increase_id": *ch.Row, "contract_id": i.cfg.ID})
}
