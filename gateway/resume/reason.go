package resume

import "headrace/gateway/openai"

// Reason is why an answer cannot be continued. The set is closed: metrics and logs use String.
type Reason uint8

// Reasons. Those up to OwnPrefill are found in the request, the others in the answer.
const (
	None             Reason = iota // it can
	Route                          // the path is neither Chat Completions nor Completions
	Tools                          // the request offers tools, and half a call cannot be told from text
	StructuredOutput               // the output is bound to a form whose state dies with the host
	Choices                        // several choices, or candidates for one
	Logprobs                       // of a text that another host has partly not written
	Seed                           // the caller counts on one sequence of random numbers
	Audio                          // output that is not text
	TokenIDs                       // the caller asks for the tokens' numbers
	PromptForm                     // no single text or list of messages at whose end text could be put
	Stop                           // a stop string may lie across the seam
	OwnPrefill                     // the caller's messages end in an unfinished answer already
	Reasoning                      // the model has reasoned: another host's parser would start anew
	ToolCall                       // a tool call has begun
	TooLong                        // more text than is kept
	Unreadable                     // an event, or the text, is not what it should be
	Exhausted                      // all tokens that were asked for are delivered: End
	Finished                       // all text is delivered: End
	reasons
)

var reasonNames = [reasons]string{
	"", "route", "tools", "structured_output", "choices", "logprobs", "seed", "audio", "token_ids", "prompt_form", "stop", "own_prefill",
	"reasoning", "tool_call", "too_long", "unreadable", "exhausted", "finished",
}

// String is the reason's name in metrics, logs and the ledger, "" for None.
func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return "unknown"
}

// Allowed judges a request before it is sent: None when what is delivered of its answer can be continued
// by another host. path is as endpoints list it, without "/v1".
func Allowed(path string, q *openai.Request) Reason {
	chat := path == "/chat/completions"
	switch {
	case !chat && path != "/completions":
		return Route
	case q.Tools && !q.ToolChoiceNone:
		return Tools
	case q.ResponseFormat:
		return StructuredOutput
	case q.N > 1 || q.BestOf > 1:
		return Choices
	case q.Logprobs || q.PromptLogprobs:
		return Logprobs
	case q.Seed:
		return Seed
	case q.Audio:
		return Audio
	case q.TokenIDs:
		return TokenIDs
	case chat && q.Turns == 0 || !chat && !q.PromptIsText:
		return PromptForm
	case q.Echo || q.Suffix || q.PromptTruncated || q.PromptElsewhere:
		return PromptForm
	case q.Stop && q.KeepStop:
		return Stop
	case q.OwnPrefill:
		return OwnPrefill
	}
	return None
}
