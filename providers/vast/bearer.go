package vast

import (
	"slices"
	"strings"

	"headrace/router/endpoint"
)

// bearer is a key that an instance's server may ask for.
type bearer struct {
	key endpoint.Secret
	own bool // the instance's own, not one that the operator gave for all
	// told says that the engine itself was started with the key, so that one which answers without it is another.
	told bool
}

// bearers returns the keys to try, likeliest first. A jupyter_token or a password of Vast.ai's portal is nearly always there
// but says nothing of whether the model server asks for it.
func (r *row) bearers(configured endpoint.Secret) []bearer {
	var out []bearer
	add := func(s string, own, told bool) {
		if name, ok := strings.CutPrefix(s, "$"); ok { // a script that reads it from the environment
			s = r.Env.get(strings.Trim(name, "{}"))
		}
		s = strings.Trim(s, `"'`)
		if s == "" || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return
		}
		if !slices.ContainsFunc(out, func(b bearer) bool { return b.key.Reveal() == s }) {
			out = append(out, bearer{endpoint.Secret(s), own, told})
		}
	}
	add(configured.Reveal(), false, false)
	add(r.Args.flag("--api-key"), true, true)
	add(r.Env.get("VLLM_API_KEY"), true, strings.Contains(r.Image.word(), "vllm/vllm-openai")) // vLLM reads it itself
	if t := r.Env.get("OPEN_BUTTON_TOKEN"); t != "1" {                                         // 1 means that the image makes one up
		add(t, true, false)
	}
	add(r.Env.get("WEB_PASSWORD"), true, false)
	add(string(r.Token), true, false)
	return out
}

// hide takes the instance's secrets out of a text that comes from its host.
func (r *row) hide(s string) string {
	for _, b := range r.bearers("") {
		s = strings.ReplaceAll(s, b.key.Reveal(), "[redacted]")
	}
	for _, p := range r.Env {
		if len(p[1]) >= 8 {
			s = strings.ReplaceAll(s, p[1], "[redacted]")
		}
	}
	return s
}
