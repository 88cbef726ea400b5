package capacity_test

import (
	"strings"
	"testing"

	"headrace/router/capacity"
)

func TestRules(t *testing.T) {
	ep := host("RTX 4090", 2, "my-model", "llama-70b-awq")
	ep.ID = "vast:48738927"
	catalogue := capacity.Lookup(ep)
	fast := capacity.Prior{ITLSeconds: 0.02}
	for name, tc := range map[string]struct {
		rule capacity.Rule
		fits bool
	}{
		"no condition":                    {capacity.Rule{}, true},
		"its id":                          {capacity.Rule{Host: "vast:48738927"}, true},
		"ids like its":                    {capacity.Rule{Host: "vast:*"}, true},
		"another id":                      {capacity.Rule{Host: "vast:4"}, false},
		"its GPU by another name":         {capacity.Rule{GPU: "NVIDIA GeForce RTX 4090"}, true},
		"another GPU":                     {capacity.Rule{GPU: "RTX 3090"}, false},
		"a GPU that nobody has heard of":  {capacity.Rule{GPU: "RTX 9090"}, false},
		"its number of GPUs":              {capacity.Rule{GPUCount: 2}, true},
		"another number":                  {capacity.Rule{GPUCount: 1}, false},
		"its model":                       {capacity.Rule{Model: "llama-70b-awq"}, true},
		"models like its":                 {capacity.Rule{Model: "llama-*"}, true},
		"another model":                   {capacity.Rule{Model: "llama"}, false},
		"everything":                      {capacity.Rule{Host: "*", GPU: "rtx 4090", GPUCount: 2, Model: "my-model"}, true},
		"one of four conditions is wrong": {capacity.Rule{Host: "*", GPU: "rtx 4090", GPUCount: 2, Model: "mixtral*"}, false},
	} {
		tc.rule.Expect = fast
		p := capacity.Rules{tc.rule}.Lookup(ep)
		switch {
		case tc.fits && (p.ITLSeconds != 0.02 || p.Slope != catalogue.Slope || p.MaxNumSeqs != catalogue.MaxNumSeqs || !strings.HasPrefix(p.Source, "config")):
			t.Errorf("%s: %+v", name, p)
		case !tc.fits && p != catalogue:
			t.Errorf("%s: %+v", name, p)
		}
	}
	if p := capacity.Rules(nil).Lookup(ep); p != catalogue {
		t.Errorf("no rules: %+v", p)
	}
	all := capacity.Prior{ITLSeconds: 0.5, Slope: 0.5, TTFTSeconds: 0.5, PrefillTokensPerSecond: 5, MaxNumSeqs: 5}
	p := capacity.Rules{{GPU: "A100"}, {Model: "llama-*", Expect: fast}, {Expect: all}}.Lookup(ep)
	all.ITLSeconds, all.Source = 0.02, p.Source
	if p != all {
		t.Errorf("two that fit: %+v", p)
	}
	other := host("RTX 9090", 1, "llama-8b") // of a kind that the catalogue does not know
	if p := (capacity.Rules{{GPU: "rtx 9090", Expect: fast}}).Lookup(other); p.ITLSeconds != 0.02 {
		t.Errorf("an unknown GPU: %+v", p)
	}
	ep.MaxNumSeqs = 9
	if p := (capacity.Rules{{Expect: all}}).Lookup(ep); p.MaxNumSeqs != 9 {
		t.Errorf("%d sequences where the endpoint says 9", p.MaxNumSeqs)
	}
}
