package fakerunpod

import (
	"net/http"
	"slices"
	"strings"

	"headrace/providers/fakecloud"
)

// gpuType is a line of the catalogue; prices in USD per hour of one GPU, 0 where there is no such offer.
type gpuType struct {
	id, name, pool, maker         string
	memory                        int // GB
	secure, community, serverless float64
	availability                  string
}

// catalog is what there is to rent. Serverless prices are RunPod's documented flex rates (June 2026), secure prices
// those of SkyPilot's catalogue where it has them; the rest, and all community prices, are made up.
var catalog = [...]gpuType{
	{"NVIDIA RTX A4000", "RTX A4000", "AMPERE_16", "NVIDIA", 16, 0.25, 0.17, 0.576, ""},
	{"NVIDIA L4", "L4", "AMPERE_24", "NVIDIA", 24, 0.49, 0, 0.684, ""},
	{"NVIDIA RTX A5000", "RTX A5000", "AMPERE_24", "NVIDIA", 24, 0.27, 0.16, 0.684, ""},
	{"NVIDIA GeForce RTX 3090", "RTX 3090", "AMPERE_24", "NVIDIA", 24, 0.46, 0.22, 0.684, ""},
	{"NVIDIA GeForce RTX 4090", "RTX 4090", "ADA_24", "NVIDIA", 24, 0.69, 0.34, 1.116, ""},
	{"NVIDIA GeForce RTX 5090", "RTX 5090", "ADA_32_PRO", "NVIDIA", 32, 0.99, 0.69, 0, ""},
	{"NVIDIA A40", "A40", "AMPERE_48", "NVIDIA", 48, 0.40, 0, 1.224, ""},
	{"NVIDIA RTX A6000", "RTX A6000", "AMPERE_48", "NVIDIA", 48, 0.49, 0.33, 1.224, ""},
	{"NVIDIA L40S", "L40S", "ADA_48_PRO", "NVIDIA", 48, 0.99, 0.79, 1.908, ""},
	{"NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", "ADA_48_PRO", "NVIDIA", 48, 0.77, 0.74, 1.908, ""},
	{"NVIDIA A100 80GB PCIe", "A100 PCIe", "AMPERE_80", "NVIDIA", 80, 1.39, 1.19, 2.736, ""},
	{"NVIDIA A100-SXM4-80GB", "A100 SXM", "AMPERE_80", "NVIDIA", 80, 1.49, 1.39, 2.736, ""},
	{"NVIDIA H100 80GB HBM3", "H100 SXM", "ADA_80_PRO", "NVIDIA", 80, 2.69, 2.29, 4.176, ""},
	{"NVIDIA H100 NVL", "H100 NVL", "ADA_80_PRO", "NVIDIA", 94, 3.19, 0, 4.176, ""},
	{"NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000", "BLACKWELL_96", "NVIDIA", 96, 1.89, 0, 3.996, ""},
	{"NVIDIA H200", "H200 SXM", "HOPPER_141", "NVIDIA", 141, 3.59, 0, 5.580, ""},
	{"NVIDIA B200", "B200", "BLACKWELL_180", "NVIDIA", 180, 5.98, 0, 8.640, ""},
	{"AMD Instinct MI300X OAM", "MI300X", "", "AMD", 192, 2.39, 0, 0, ""},
}

// gpuOf is the GPU type that fits a class of hosts.
func gpuOf(c fakecloud.Class) string {
	switch {
	case strings.Contains(c.GPU, "H100"):
		return "NVIDIA H100 80GB HBM3"
	case strings.Contains(c.GPU, "4090"):
		return "NVIDIA GeForce RTX 4090"
	default:
		return "NVIDIA A100 80GB PCIe"
	}
}

// gpu returns a line of the catalogue as it is now. One that it does not have belongs to no pool and has no price.
func (c *Cloud) gpu(id string) gpuType {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.IndexFunc(c.gpus, func(g gpuType) bool { return g.id == id }); i >= 0 {
		return c.gpus[i]
	}
	return gpuType{id: id, name: id}
}

func (c *Cloud) setGPU(id string, set func(*gpuType)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.IndexFunc(c.gpus, func(g gpuType) bool { return g.id == id }); i >= 0 {
		set(&c.gpus[i])
	}
}

// SetPrice moves what a GPU costs on serverless endpoints, in USD per hour; 0 takes the price away. Running workers are
// billed by the new price from now on.
func (c *Cloud) SetPrice(gpuTypeID string, serverlessUSDPerHour float64) {
	for _, e := range c.endpointList() {
		e.settle()
	}
	c.setGPU(gpuTypeID, func(g *gpuType) { g.serverless = serverlessUSDPerHour })
}

// SetAvailability says how much of a GPU there is: "NONE", "LOW", "MEDIUM" or "HIGH".
func (c *Cloud) SetAvailability(gpuTypeID, level string) {
	c.setGPU(gpuTypeID, func(g *gpuType) { g.availability = level })
}

func (c *Cloud) serveGPUs(w http.ResponseWriter, r *http.Request, id string) {
	q := r.URL.Query()
	include, product := q.Get("include"), q.Get("product")
	switch {
	case include != "" && include != "AVAILABILITY":
		problem(w, http.StatusUnprocessableEntity, "include: unsupported value")
		return
	case include != "" && product == "", include == "" && product != "":
		problem(w, http.StatusBadRequest, "product is required with include=AVAILABILITY and valid only with it")
		return
	}
	c.mu.Lock()
	gpus := slices.Clone(c.gpus)
	odd := c.odd
	c.mu.Unlock()
	list := []any{}
	for _, g := range gpus {
		if id == "" || g.id == id {
			list = append(list, g.json(include != "", odd))
		}
	}
	switch {
	case id == "":
		writeJSON(w, http.StatusOK, map[string]any{"gpus": list})
	case len(list) == 0:
		problem(w, http.StatusNotFound, "resource not found")
	default:
		writeJSON(w, http.StatusOK, list[0])
	}
}

func (g *gpuType) json(availability, odd bool) map[string]any {
	price := map[string]any{"secure": g.secure, "community": g.community}
	if g.serverless > 0 {
		price["serverless"] = g.serverless
	}
	if odd {
		for k, v := range price {
			price[k] = decimal(v.(float64))
		}
	}
	m := map[string]any{
		"id": g.id, "name": g.name, "manufacturer": g.maker, "memory": g.memory, "secure": g.secure > 0, "community": g.community > 0,
		"price": price, "maxCount": map[string]int{"secure": 8, "community": 4},
	}
	if g.pool != "" {
		m["pool"] = g.pool
	}
	if availability {
		level := g.availability
		if level == "" {
			level = "HIGH"
		}
		m["availability"] = level
		m["dataCenters"] = []any{map[string]string{"id": "US-KS-2", "name": "US Kansas 2", "availability": level}}
	}
	return m
}
