//go:build toxiproxy

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// HasNetwork says whether network faults can be had: toxiproxy nearly doubles the size of the program, so that only a build with
// the tag "toxiproxy" has it.
const HasNetwork = true

// network is the ways to hosts, each through a proxy that can be poisoned.
type network struct {
	server *toxiproxy.ApiServer // it serves no API
	ways   []*way
}

// way is the way to one host.
type way struct {
	proxy   *toxiproxy.Proxy
	address string // where it begins
}

func newNetwork() *network {
	return &network{server: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())}
}

// to opens a way to an address.
func (n *network) to(name, address string) (*way, error) {
	p := toxiproxy.NewProxy(n.server, name, "127.0.0.1:0", address)
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("open a way to %s: %w", name, err)
	}
	w := &way{proxy: p, address: p.Listen}
	n.ways = append(n.ways, w)
	return w, nil
}

func (n *network) stop() {
	for _, w := range n.ways {
		w.proxy.Toxics.ResetToxics(context.Background())
		w.proxy.Stop()
	}
}

// poison puts toxics on the way; the function returned takes them away.
func (w *way) poison(ts []Toxic) (heal func()) {
	for i, t := range ts {
		b, err := json.Marshal(t.json(i))
		if err != nil {
			panic("BUG: a toxic that is no JSON: " + err.Error())
		}
		if _, err := w.proxy.Toxics.AddToxicJson(bytes.NewReader(b)); err != nil {
			panic("BUG: a toxic that toxiproxy does not know: " + err.Error())
		}
	}
	return func() { w.proxy.Toxics.ResetToxics(context.Background()) }
}

// json is t in toxiproxy's words.
func (t *Toxic) json(i int) map[string]any {
	kind, attributes := t.Kind, map[string]any{}
	switch t.Kind {
	case "latency":
		attributes["latency"], attributes["jitter"] = t.Delay.Milliseconds(), t.Jitter.Milliseconds()
	case "bandwidth":
		attributes["rate"] = t.KBps
	case "reset":
		kind = "reset_peer"
		attributes["timeout"] = t.Delay.Milliseconds()
	case "timeout":
		attributes["timeout"] = t.Delay.Milliseconds()
	case "slicer":
		attributes["average_size"], attributes["size_variation"], attributes["delay"] = 16, 8, time.Millisecond.Microseconds()
	}
	direction := "downstream"
	if t.Upwards {
		direction = "upstream"
	}
	return map[string]any{"name": fmt.Sprint(t.Kind, i), "type": kind, "stream": direction, "toxicity": 1, "attributes": attributes}
}
