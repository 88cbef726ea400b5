package vast_test

import (
	"testing"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
	"headrace/router/endpoint"
)

// TestInherit puts another server at a pinned address while no Provider looks, as during a reload of the config.
func TestInherit(t *testing.T) {
	for name, tc := range map[string]struct {
		between func(o *vast.Options) // of a Provider that ends before its first list; nil for none
		models  []string              // of the last one
		known   bool
	}{
		"heir":              {nil, nil, true},
		"after two reloads": {func(*vast.Options) {}, nil, true},
		"of other models":   {nil, []string{"theirs"}, true},
		"another account":   {func(o *vast.Options) { o.Key = "another" }, nil, false},
		"asked elsewhere":   {func(o *vast.Options) { o.ConsoleURL = "http://127.0.0.1:1" }, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := start(t, fakevast.Config{}, func(o *vast.Options) { o.TLS = vast.TLSPin },
				fakevast.InstanceConfig{Template: fakevast.Portal, Portal: fakevast.PortalConfig{HTTPS: true}})
			i := first.cloud.Instances()[0]
			want := first.state(i, endpoint.Ready, "").Served[0].Name
			first.stop()
			old := first.p
			if tc.between != nil {
				o := vast.Options{Key: "vast-key", ConsoleURL: first.cloud.ConsoleURL()}
				tc.between(&o)
				old = vast.New(o)
				old.Inherit(first.p)
			}
			other := i.ReuseAddress(fakecloud.HostConfig{Name: "stranger", TLS: true})
			r := attachAfter(t, old, first.cloud, func(o *vast.Options) { o.TLS, o.Models = vast.TLSPin, tc.models })
			if !tc.known { // it takes the certificate for the first that it has met
				r.until("the stranger to be asked", func([]endpoint.Endpoint) bool { return len(other.Requests()) > 0 })
				return
			}
			ep := r.state(i, endpoint.Starting, "another certificate")
			if n := len(other.Requests()); n > 0 {
				t.Errorf("%d requests were sent to the stranger", n)
			}
			if tc.models != nil {
				want = tc.models[0]
			}
			if len(ep.Served) != 1 || ep.Served[0].Name != want {
				t.Errorf("served %+v, want %s", ep.Served, want)
			}
		})
	}
}
