package chaos

import (
	"testing"
	"time"

	"headrace/providers/fakecloud/fakevast"
)

// TestTrustWithin gives hosts more time than 10 s only where they need it.
func TestTrustWithin(t *testing.T) {
	for name, tc := range map[string]struct {
		f    Fleet
		want time.Duration
	}{
		"as in life":               {Fleet{scenario: &Scenario{Speed: 1}}, 10 * time.Second},
		"fast engines":             {Fleet{scenario: &Scenario{Speed: 20}}, 10 * time.Second},
		"slow engines":             {Fleet{scenario: &Scenario{Speed: 0.5}}, 20 * time.Second},
		"a control plane":          {Fleet{scenario: &Scenario{Speed: 1}, vast: &fakevast.Cloud{}, pace: 1}, 35 * time.Second},
		"a control plane in haste": {Fleet{scenario: &Scenario{Speed: 1}, vast: &fakevast.Cloud{}, pace: 1000}, 10*time.Second + leastPoll + 10*time.Millisecond},
	} {
		if got := tc.f.trustWithin(); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
