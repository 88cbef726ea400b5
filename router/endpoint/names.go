package endpoint

import "fmt"

var (
	trustNames   = [...]string{"unknown", "community", "verified", "datacenter", "secure"}
	basisNames   = [...]string{"unknown", "per_hour", "per_worker_second", "per_token"}
	tenureNames  = [...]string{"unknown", "interruptible", "on_demand", "serverless", "per_token"}
	dialectNames = [...]string{"openai", "runpod_jobs", "vast_route"}
	stateNames   = [...]string{"unknown", "cold", "starting", "ready", "saturated", "preempted", "draining", "gone", "no_capacity"}
)

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("invalid(%d)", i)
}

// String returns the word used in config, logs and metrics.
func (t Trust) String() string { return name(trustNames[:], int(t)) }

// String returns the word used in logs and metrics.
func (b Basis) String() string { return name(basisNames[:], int(b)) }

// String returns the word used in logs and metrics.
func (d Dialect) String() string { return name(dialectNames[:], int(d)) }

// MarshalText lets JSON show the word.
func (d Dialect) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the word used in config, logs and metrics.
func (t Tenure) String() string { return name(tenureNames[:], int(t)) }

// String returns the word used in logs and metrics.
func (s State) String() string { return name(stateNames[:], int(s)) }

// MarshalText lets JSON show the word.
func (t Trust) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MarshalText lets JSON show the word.
func (b Basis) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// MarshalText lets JSON show the word.
func (t Tenure) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MarshalText lets JSON show the word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseTenure reads a word of the config file; ok is false for any other word.
func ParseTenure(s string) (t Tenure, ok bool) {
	for i, n := range tenureNames {
		if n == s {
			return Tenure(i), true
		}
	}
	return TenureUnknown, false
}

// ParseTrust reads a word of the config file or of a request header; ok is false for any other word.
func ParseTrust(s string) (t Trust, ok bool) {
	for i, n := range trustNames {
		if n == s {
			return Trust(i), true //nolint:gosec // a handful
		}
	}
	return TrustUnknown, false
}
