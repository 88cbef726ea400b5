package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/router/endpoint"
)

// newCachingRig starts a gateway in front of two hosts of one kind that keep prefixes: static:h0 in region A, static:h1 in B.
func newCachingRig(t *testing.T, timeScale float64, more ...func(*rigOptions)) (*rig, []*fakecloud.Host) {
	t.Helper()
	var urls []string
	var hosts []*fakecloud.Host
	for i := range 2 {
		h, err := fakecloud.StartHost(t.Context(), fakecloud.HostConfig{Models: []string{model}, TPS: 20, TimeScale: timeScale, Seed: uint64(i) + 1}) //nolint:gosec // not negative
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Stop)
		urls, hosts = append(urls, h.URL()+"/v1"), append(hosts, h)
	}
	g := newRig(t, urls, func(o *rigOptions) {
		o.noTLS = true
		for _, f := range more {
			f(o)
		}
		o.edit = func(eps []endpoint.Endpoint) {
			for i := range eps {
				eps[i].Region, eps[i].APIKey = string(rune('A'+i)), ""
				eps[i].Price.USDPerHour, eps[i].MaxNumSeqs = 1, 8
			}
		}
	})
	return g, hosts
}

// cached is how many prompt tokens hosts have had in their caches.
func cached(hosts []*fakecloud.Host) (n int) {
	for _, h := range hosts {
		n += h.Stats().CachedTokens
	}
	return n
}

// talk is one conversation.
type talk struct {
	g       *rig
	path    string
	headers []string
	extra   string // members of the body
	stream  bool
	turns   []string
	last    string // the host of its last turn
}

// say adds a turn of the caller's and one of the host's that answered.
func (k *talk) say(text string) {
	k.g.t.Helper()
	k.turns = append(k.turns, fmt.Sprintf(`{"role":"user","content":%q}`, text))
	body := fmt.Sprintf(`{"model":%q,"max_tokens":4,"stream":%t,%s"messages":[%s]}`, model, k.stream, k.extra, strings.Join(k.turns, ","))
	n := k.g.count()
	r, answer, err := k.g.do(post(k.path, body, k.headers...))
	if r.StatusCode != http.StatusOK || err != nil {
		k.g.t.Fatalf("status %d, %v: %s", r.StatusCode, err, answer)
	}
	rec := k.g.recordN(n)
	k.last = string(rec.Endpoint)
	b, err := json.Marshal(map[string]string{"role": "assistant", "content": answer[:min(len(answer), 300)]})
	if err != nil {
		k.g.t.Fatal(err)
	}
	k.turns = append(k.turns, string(b))
}

func (g *rig) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.records)
}

// essay is n bytes that begin unlike those of any other name.
func essay(name string, n int) string {
	return (name + strings.Repeat(" and so "+name+" went on", n/10))[:n]
}

// TestConversationsStay keeps every turn of a conversation on the host that has computed the ones before.
func TestConversationsStay(t *testing.T) {
	for name, like := range map[string]talk{
		"streams":  {path: chatPath, stream: true},
		"answers":  {path: chatPath},
		"messages": {path: "/v1/messages", stream: true, extra: `"system":"Be brief.",`},
	} {
		t.Run(name, func(t *testing.T) {
			g, caches := newCachingRig(t, 0)
			hosts := map[string]bool{}
			for i := range 8 {
				k := like
				k.g = g
				k.say(essay(fmt.Sprint("talk", i), 2000))
				first := k.last
				hosts[first] = true
				for turn := 1; turn < 5; turn++ {
					before := cached(caches)
					k.say(essay(fmt.Sprint("turn", turn), 500))
					if k.last != first {
						t.Errorf("talk %d: turn %d went to %s, the others to %s", i, turn, k.last, first)
					}
					if n := cached(caches) - before; n < 400 {
						t.Errorf("talk %d: turn %d had %d tokens from the cache", i, turn, n)
					}
				}
			}
			if len(hosts) != 2 {
				t.Errorf("all of eight conversations began on one host: %v", hosts)
			}
		})
	}
}

// TestSessionsStay keeps requests together that have nothing in common but the name of their session.
func TestSessionsStay(t *testing.T) {
	for name, like := range map[string]talk{
		"header":     {headers: []string{"X-Headrace-Session: s-%d"}},
		"cache key":  {extra: `"prompt_cache_key":"s-%d",`},
		"both":       {headers: []string{"x-headrace-session: s-%d"}, extra: `"prompt_cache_key":"same",`},
		"user is no": {extra: `"user":"s-%d",`},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := newCachingRig(t, 0)
			moved := 0
			for i := range 6 {
				k := like
				k.g, k.path, k.stream = g, chatPath, true
				if k.headers != nil {
					k.headers = []string{fmt.Sprintf(k.headers[0], i)}
				}
				if strings.Contains(k.extra, "%d") {
					k.extra = fmt.Sprintf(k.extra, i)
				}
				was := ""
				for turn := range 5 {
					k.turns = nil
					k.say(essay(fmt.Sprint(name, i, "-", turn), 300))
					if was != "" && was != k.last {
						moved++
					}
					was = k.last
				}
			}
			if stays := name != "user is no"; stays != (moved == 0) {
				t.Errorf("%d of 24 went elsewhere than the one before", moved)
			}
		})
	}
}

// TestCrowdedHost sends a conversation elsewhere while its host is busy, and others away from it from the beginning.
func TestCrowdedHost(t *testing.T) {
	g, _ := newCachingRig(t, 20)
	k := &talk{g: g, path: chatPath, stream: true}
	k.say(essay("talk", 4000))
	home, region := k.last, "A"
	if home == "static:h1" {
		region = "B"
	}
	hold := func() { // a stream of its host that goes on
		c := g.dial()
		body := fmt.Sprintf(`{"model":%q,"max_tokens":20000,"stream":true,"messages":[{"role":"user","content":"on"}]}`, model)
		c.send(post(chatPath, body, "x-headrace-region: "+region))
		if r := c.response(); r.StatusCode != http.StatusOK || r.Header.Get("X-Headrace-Endpoint") != home {
			t.Fatalf("status %d from %s, want %s", r.StatusCode, r.Header.Get("X-Headrace-Endpoint"), home)
		}
	}
	hold()
	k.say("Well?")
	if k.last != home {
		t.Errorf("one other stream drove the conversation from %s to %s", home, k.last)
	}
	other := &talk{g: g, path: chatPath, stream: true}
	if other.say(essay("other", 4000)); other.last == home {
		t.Errorf("a new conversation joined another one on %s, with a host idle", home)
	}
	for range 5 {
		hold()
	}
	if k.say("And?"); k.last == home {
		t.Errorf("the conversation stayed on %s, which is full of streams", home)
	}
}

// BenchmarkRequest is a whole request on a kept connection, system calls on both sides included, by the size of its prompt.
func BenchmarkRequest(b *testing.B) {
	for name, size := range map[string]int{"1K": 1 << 10, "64K": 64 << 10} {
		b.Run(name, func(b *testing.B) {
			up := newUpstream(b, answering)
			g := newRig(b, []string{up.url()}, func(o *rigOptions) { o.noTLS = true })
			c := g.dial()
			_ = c.SetDeadline(time.Time{})
			req := post(chatPath, fmt.Sprintf(`{"model":%q,"stream":true,"messages":[{"role":"user","content":%q}]}`, model, essay("talk", size)))
			b.ReportAllocs()
			for b.Loop() {
				if r, body, err := c.send(req).whole(); r.StatusCode != http.StatusOK || err != nil {
					b.Fatalf("status %d, %v: %s", r.StatusCode, err, body)
				}
			}
		})
	}
}
