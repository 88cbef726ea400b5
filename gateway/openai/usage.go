package openai

// Usage is what an engine reports of the tokens it has read and written; -1 stands for what it did not report.
type Usage struct {
	Prompt     int64 // tokens of the prompt, cached ones included
	Completion int64 // tokens written, reasoning included
	Cached     int64 // of Prompt: read from the prefix cache
	Reasoning  int64 // of Completion: spent on reasoning
}

// NoUsage returns a Usage in which nothing is reported.
func NoUsage() Usage { return Usage{-1, -1, -1, -1} }

// Merge takes over what v reports. Anthropic streams report prompt and completion in different events.
func (u *Usage) Merge(v Usage) {
	for _, f := range [...]struct {
		to   *int64
		from int64
	}{{&u.Prompt, v.Prompt}, {&u.Completion, v.Completion}, {&u.Cached, v.Cached}, {&u.Reasoning, v.Reasoning}} {
		if f.from >= 0 {
			*f.to = f.from
		}
	}
}

// usage reads the value of "usage" in any of the known shapes and says whether it is an object.
func (c *Chunk) usage(r *reader) bool {
	if !r.open('{') {
		return false
	}
	u, total, read, written := NoUsage(), int64(-1), int64(-1), int64(-1)
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "prompt_tokens", "input_tokens":
			u.Prompt = r.count()
		case "completion_tokens", "output_tokens":
			u.Completion = r.count()
		case "total_tokens":
			total = r.count()
		case "prompt_tokens_details", "input_tokens_details":
			if n := r.detail("cached_tokens"); n >= 0 {
				u.Cached = n
			}
		case "completion_tokens_details", "output_tokens_details":
			if n := r.detail("reasoning_tokens"); n >= 0 {
				u.Reasoning = n
			}
		case "prompt_cache_hit_tokens": // DeepSeek
			if n := r.count(); n >= 0 {
				u.Cached = n
			}
		case "cache_read_input_tokens": // Anthropic, which leaves cached tokens out of input_tokens
			read = r.count()
		case "cache_creation_input_tokens":
			written = r.count()
		default:
			r.skip()
		}
	}
	if read >= 0 {
		u.Cached = read
	}
	if u.Prompt >= 0 {
		u.Prompt += max(read, 0) + max(written, 0)
	}
	if u.Prompt < 0 && u.Completion < 0 {
		u.Prompt = total // rerank and some embedding servers
	}
	c.Usage.Merge(u)
	c.HasUsage = c.Usage != NoUsage()
	return true
}

// detail reads an object and returns its count of the name want, -1 when there is none.
func (r *reader) detail(want string) int64 {
	n := int64(-1)
	if r.open('{') {
		for name, ok := r.member(); ok; name, ok = r.member() {
			if string(name) == want {
				n = r.count()
			} else {
				r.skip()
			}
		}
	}
	return n
}
