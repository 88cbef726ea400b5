package serverless

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"headrace/providers/api"
)

// Share lets replicas share one poller. Poll returns what fetch returned, to whichever replica, at most every ago, or calls it.
// What is shared is sealed under a key that only holders of the account's key have: it holds the endpoints' keys.
type Share interface {
	Poll(ctx context.Context, key string, every time.Duration, fetch func(context.Context) ([]byte, error)) ([]byte, error)
}

const sealedAs = "headrace shared answers of vast serverless"

// shared is an answer as replicas hand it on.
type shared struct {
	At   time.Time `json:"at"` // by the clock of the replica that asked
	Body []byte    `json:"body"`
}

// ask makes a call of a look, or takes the answer that another replica got to the same call at most within ago. What is no JSON
// is not shared.
func (p *Provider) ask(ctx context.Context, c *api.Client, call api.Call, within time.Duration) (*api.Answer, error) {
	if p.opt.Share == nil {
		return c.Do(ctx, call)
	}
	name, err := p.nameOf(&call)
	if err != nil {
		return nil, err
	}
	var mine *api.Answer
	b, err := p.opt.Share.Poll(ctx, name, within, func(ctx context.Context) ([]byte, error) {
		a, err := c.Do(ctx, call)
		if err != nil {
			return nil, err
		}
		if mine = a; !json.Valid(a.Body) {
			return nil, errors.New("the answer is no JSON")
		}
		plain, err := json.Marshal(shared{a.At, a.Body})
		if err != nil {
			return nil, err
		}
		return api.Seal(p.opt.Key, sealedAs, plain)
	})
	if mine != nil {
		return mine, nil //nolint:nilerr // it came, whatever was wrong with sharing it
	}
	if err != nil {
		return nil, err
	}
	plain, err := api.Open(p.opt.Key, sealedAs, b)
	var s shared
	if err == nil {
		err = json.Unmarshal(plain, &s)
	}
	if err != nil {
		return nil, fmt.Errorf("the answer that another replica got cannot be used: %w", err)
	}
	now := p.opt.Now() // that one's clock is not ours
	if at := s.At; at.After(now) {
		s.At = now
	} else if oldest := now.Add(-within); at.Before(oldest) {
		s.At = oldest
	}
	return &api.Answer{Status: 200, Body: s.Body, At: s.At}, nil
}

// nameOf names a call, its account and what it asks for without telling a key.
func (p *Provider) nameOf(call *api.Call) (string, error) {
	body, err := json.Marshal(call.Body)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, s := range []string{p.opt.Key.Reveal(), call.Key.Reveal(), call.URL, string(body)} {
		h.Write([]byte(s + "\x00"))
	}
	return "vast:serverless:" + hex.EncodeToString(h.Sum(nil)[:16]), nil
}
