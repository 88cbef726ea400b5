package fakerunpod

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"

	"headrace/providers/fakecloud"
)

// yielder makes what the engine answers into the yields of a worker's generation.
type yielder struct {
	a      *attempt
	limit  int // yields after which it is struck, 0 for none
	sent   int
	struck bool
}

// out hands one yield to the SDK, which makes one with an error into the job's failure. It returns the job's error.
func (y *yielder) out(v json.RawMessage) (errText string) {
	var m map[string]json.RawMessage
	if json.Unmarshal(v, &m) == nil && truthy(m["error"]) {
		return pythonStr(m["error"])
	}
	y.send(v)
	return ""
}

// send yields; false when nothing more is wanted.
func (y *yielder) send(v json.RawMessage) bool {
	if y.struck || !y.a.yield(v) {
		return false
	}
	if d := y.a.j.e.c.delay(y.a.j.e.cfg.PostTime); d > 0 && fakecloud.Pause(y.a.ctx, d) != nil {
		return false
	}
	y.sent++
	y.struck = y.limit > 0 && y.sent >= y.limit
	return !y.struck
}

func truthy(v json.RawMessage) bool {
	switch string(v) {
	case "", "null", "false", `""`, "{}", "[]", "0":
		return false
	}
	return true
}

// refuse is an answer of the engine that is an error.
func (y *yielder) refuse(status int, body []byte) (errText string) {
	switch y.a.j.e.cfg.Generation {
	case SGLang:
		y.send(encode(strings.TrimSpace(string(body)))) // it does not look at the status
		return ""
	case V23, V23Lists, V23Native:
		if json.Valid(body) {
			return y.out(body)
		}
		return y.out(encode(map[string]string{"error": string(body)}))
	default:
		return y.out(workerError(fmt.Sprintf("vLLM returned HTTP %d: %s", status, body)))
	}
}

// relay asks the engine and yields what it answers.
func (y *yielder) relay(q *ask) (errText string) {
	e := y.a.j.e
	gen := e.cfg.Generation
	if old := gen == V23 || gen == V23Lists; old && !slices.Contains([]string{"/v1/chat/completions", "/v1/completions", "/v1/models"}, q.path) {
		return y.refuse(http.StatusBadRequest, encode(map[string]any{"object": "error", "message": "Invalid route", "type": "BadRequestError", "param": nil, "code": 400}))
	}
	resp, err := y.a.send(q)
	if err != nil {
		if gen == V24 {
			return y.out(workerError(engineDead))
		}
		return handlerError("aiohttp.client_exceptions.ClientConnectorError", "Connection refused")
	}
	defer resp.Body.Close()
	body := &keeper{r: resp.Body, a: y.a}
	if resp.StatusCode != http.StatusOK || !q.stream && !q.native {
		b, err := io.ReadAll(body)
		switch {
		case err != nil:
			return handlerError("aiohttp.client_exceptions.ClientPayloadError", broken)
		case resp.StatusCode != http.StatusOK:
			return y.refuse(resp.StatusCode, b)
		case gen == SGLang && q.body != nil:
			y.send(encode(strings.TrimSpace(string(b))))
			return ""
		case !json.Valid(b):
			y.send(encode(string(b)))
			return ""
		case e.cfg.CostUSD > 0:
			b = with(b, "cost", encode(e.cfg.CostUSD))
		}
		return y.out(b)
	}
	switch {
	case q.native:
		err = y.tokens(body, q.stream)
	case gen == V24:
		err = y.raw(body)
	case gen == V23, gen == V23Lists, gen == V23Native:
		err = y.batches(body)
	case gen == SGLang:
		err = y.indented(body)
	default:
		var b []byte
		if b, err = io.ReadAll(body); err == nil {
			y.send(encode(string(b)))
		}
	}
	if err != nil && y.a.ctx.Err() == nil {
		return handlerError("aiohttp.client_exceptions.ClientPayloadError", broken)
	}
	return ""
}

const broken = "Response payload is not completed: <TransferEncodingError: 400, message='Not enough data to satisfy transfer length header.'>"

// keeper keeps what the engine sends for the tests.
type keeper struct {
	r io.Reader
	a *attempt
}

func (k *keeper) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if n > 0 {
		e := k.a.j.e
		e.mu.Lock()
		if k.a.j.attempt == k.a {
			k.a.j.upstream = append(k.a.j.upstream, p[:n]...)
		}
		e.mu.Unlock()
	}
	return n, err
}

// raw passes bytes on as they arrive, as text: what a cut leaves of a character is lost.
func (y *yielder) raw(r io.Reader) error {
	e := y.a.j.e
	buf := make([]byte, 64<<10)
	var rng *rand.Rand
	if e.cfg.CutMax > 0 {
		seed := uint64(0)
		for _, c := range []byte(y.a.j.id) {
			seed = seed*131 + uint64(c)
		}
		rng = rand.New(rand.NewPCG(e.c.cfg.Seed, seed)) //nolint:gosec // cuts are to be repeatable
	}
	for {
		part := buf
		if rng != nil {
			part = buf[:1+rng.IntN(min(e.cfg.CutMax, len(buf)))]
		}
		n, err := r.Read(part)
		if n > 0 {
			s, destroyed := decodeReplace(part[:n])
			if destroyed > 0 {
				e.mu.Lock()
				e.stats.Destroyed += destroyed
				y.a.j.destroyed += destroyed
				e.mu.Unlock()
			}
			if !y.send(encode(s)) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// events calls f with each event of a stream, its blank line included, until f returns false.
func events(r io.Reader, f func(event []byte) bool) error {
	var held []byte
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		held = append(held, buf[:n]...)
		for {
			i := bytes.Index(held, []byte("\n\n"))
			if i < 0 {
				break
			}
			if !f(held[:i+2]) {
				return nil
			}
			held = held[i+2:]
		}
		if err == io.EOF {
			if len(held) > 0 {
				f(held)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// growth is how many events worker-vllm until 2.23 puts into one yield: 1, 3, 9, 27, 50, 50…
type growth struct{ size, most, factor int }

func (e *Endpoint) growth() growth {
	env := e.cfg.Env
	most := cmp.Or(number(env["DEFAULT_BATCH_SIZE"]), 50)
	return growth{min(cmp.Or(number(env["MIN_BATCH_SIZE"]), 1), most), most, cmp.Or(number(env["BATCH_SIZE_GROWTH_FACTOR"]), 3)}
}

func (g *growth) grow() { g.size = min(g.size*g.factor, g.most) }

// batches passes whole events on, many in one yield.
func (y *yielder) batches(r io.Reader) error {
	e := y.a.j.e
	g := e.growth()
	lists := e.cfg.Generation == V23Lists
	var batch []string
	flush := func() bool {
		var v json.RawMessage
		if lists {
			v = []byte("[" + strings.Join(batch, ",") + "]")
		} else {
			v = encode(strings.Join(batch, ""))
		}
		batch = nil
		return y.send(v)
	}
	more := true
	err := events(r, func(event []byte) bool {
		s := string(event)
		if lists {
			s = strings.TrimSpace(strings.TrimPrefix(s, "data: "))
			if s == "[DONE]" {
				return true
			}
		}
		if batch = append(batch, s); len(batch) >= g.size {
			more = flush()
			g.grow()
		}
		return more
	})
	if err == nil && more && len(batch) > 0 {
		flush()
	}
	return err
}

// indented yields the events when the last one is there, their JSON over several data lines.
func (y *yielder) indented(r io.Reader) error {
	var all []string
	err := events(r, func(event []byte) bool {
		data := strings.TrimSpace(strings.TrimPrefix(string(event), "data: "))
		var b bytes.Buffer
		if data != "[DONE]" && json.Indent(&b, []byte(data), "", "    ") == nil {
			data = strings.ReplaceAll(b.String(), "\n", "\ndata: ")
		}
		all = append(all, "data: "+data+"\n\n")
		return true
	})
	if err != nil {
		return err
	}
	for _, s := range all {
		if !y.send(encode(s)) {
			break
		}
	}
	return nil
}

// tokens makes a stream of the engine into the native form of worker-vllm until 2.23.
func (y *yielder) tokens(r io.Reader, stream bool) error {
	g := y.a.j.e.growth()
	var texts [][]string
	input, output, held := 0, 0, 0
	flush := func() bool {
		type choice struct {
			Tokens []string `json:"tokens"`
		}
		v := struct {
			Choices []choice       `json:"choices"`
			Usage   map[string]int `json:"usage"`
		}{Usage: map[string]int{"input": input, "output": output}}
		for _, t := range texts {
			if !stream {
				t = []string{strings.Join(t, "")}
			}
			v.Choices = append(v.Choices, choice{t})
		}
		texts, held = make([][]string, len(texts)), 0
		for i := range texts {
			texts[i] = []string{}
		}
		return y.send(encode(v))
	}
	more := true
	err := events(r, func(event []byte) bool {
		var c struct {
			Choices []struct {
				Index int    `json:"index"`
				Text  string `json:"text"`
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
			Usage struct {
				Prompt     int `json:"prompt_tokens"`
				Completion int `json:"completion_tokens"`
			} `json:"usage"`
		}
		if json.Unmarshal(bytes.TrimPrefix(bytes.TrimSpace(event), []byte("data: ")), &c) != nil {
			return true
		}
		input, output = max(input, c.Usage.Prompt), max(output, c.Usage.Completion)
		for _, ch := range c.Choices {
			if t := ch.Text + ch.Delta.Content; t != "" {
				for len(texts) <= ch.Index {
					texts = append(texts, []string{})
				}
				texts[ch.Index] = append(texts[ch.Index], t)
				held++
			}
		}
		if stream && held >= g.size {
			more = flush()
			g.grow()
		}
		return more
	})
	if err == nil && more && held > 0 {
		flush()
	}
	return err
}
