//go:build !toxiproxy

package chaos

// HasNetwork says whether network faults can be had: toxiproxy nearly doubles the size of the program, so that only a build with
// the tag "toxiproxy" has it.
const HasNetwork = false

type network struct{}

type way struct{ address string }

func newNetwork() *network { return &network{} }

func (*network) to(string, string) (*way, error) { panic("BUG: no network in this build") }

func (*network) stop() {}

func (*way) poison([]Toxic) func() { panic("BUG: no network in this build") }
