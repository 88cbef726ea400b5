package openai

import (
	"encoding/json"
	"strconv"
)

// AppendModelList appends {"object":"list","data":[…]} to dst. The cards are JSON objects; of those
// with the same "id" the first stays. What is no object with a string "id" is left out.
func AppendModelList(dst []byte, cards [][]byte) []byte {
	dst = append(dst, `{"object":"list","data":[`...)
	seen := make(map[string]struct{}, len(cards))
	for _, card := range cards {
		var head struct {
			ID *string `json:"id"`
		}
		if json.Unmarshal(card, &head) != nil || head.ID == nil {
			continue
		}
		if _, dup := seen[*head.ID]; dup {
			continue
		}
		if len(seen) > 0 {
			dst = append(dst, ',')
		}
		seen[*head.ID] = struct{}{}
		dst = append(dst, card...)
	}
	return append(dst, ']', '}')
}

// AppendModelCard appends one model object to dst: the members of base, a JSON object or nil, byte
// for byte but with "id" replaced, and "object", "created" (seconds since 1970) and "owned_by" where
// base lacks them. A base that is no JSON object counts as nil.
func AppendModelCard(dst []byte, id string, base []byte, created int64) []byte {
	dst = append(dst, `{"id":`...)
	dst = AppendString(dst, id)
	hasObject, hasCreated, hasOwner := false, false, false
	start := len(dst)
	r := reader{b: base}
	if r.open('{') {
		for {
			name, ok := r.memberRaw()
			if !ok {
				break
			}
			value := r.skip()
			if r.problem != fine {
				break
			}
			switch string(appendUnescaped(nil, name)) {
			case "id":
				continue
			case "object":
				hasObject = true
			case "created":
				hasCreated = true
			case "owned_by":
				hasOwner = true
			}
			dst = append(dst, ',', '"')
			dst = append(dst, name...)
			dst = append(dst, '"', ':')
			dst = append(dst, value...)
		}
	}
	if r.peek(); r.problem != fine || r.i < len(base) {
		dst, hasObject, hasCreated, hasOwner = dst[:start], false, false, false
	}
	if !hasObject {
		dst = append(dst, `,"object":"model"`...)
	}
	if !hasCreated {
		dst = append(dst, `,"created":`...)
		dst = strconv.AppendInt(dst, created, 10)
	}
	if !hasOwner {
		dst = append(dst, `,"owned_by":"headrace"`...)
	}
	return append(dst, '}')
}
