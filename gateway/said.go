package gateway

import (
	"headrace/gateway/ledger"
	"headrace/gateway/openai"
)

// saidUnderWay bounds what all requests under way keep of what was said, in bytes: sampled streams can be thousands.
const saidUnderWay = 64 << 20

// keep puts what an event says into s. Most say a piece of one thing and nothing else, of which the frame is many times as long.
func keep(s *ledger.Said, c *openai.Chunk, data []byte) {
	switch plain := c.TextChoice && !c.Other && !c.Reasoning; {
	case plain && !c.Finish && c.TextAt.Present():
		s.Text(data[c.TextAt.From:c.TextAt.To])
	case c.Done && !c.Content: // the Responses API says all of it once more at the end
	case c.Content && !c.Finish:
		switch p := openai.PieceOf(data); p.Kind {
		case openai.PieceText:
			s.Text(data[p.At.From:p.At.To])
		case openai.PieceReasoning:
			s.Reasoning(data[p.At.From:p.At.To])
		case openai.PieceArguments:
			s.Arguments(p.Index, data[p.At.From:p.At.To])
		case openai.NoPiece:
			s.Answer(data)
		}
	case c.Content, c.Finish:
		s.Answer(data)
	}
}
