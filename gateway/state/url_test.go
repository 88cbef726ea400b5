package state

import (
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestURL reads every form of address there is.
func TestURL(t *testing.T) {
	type want struct {
		addrs                                  []string
		user, password, master, suser, spasswd string
		db                                     int
		cluster, tls                           bool
		proto                                  int
	}
	for url, w := range map[string]want{
		"redis://h":                      {addrs: []string{"h:6379"}},
		"redis://u:p@h:1/2?protocol=2":   {addrs: []string{"h:1"}, user: "u", password: "p", db: 2, proto: 2},
		"rediss://:p@h":                  {addrs: []string{"h:6379"}, password: "p", tls: true},
		"unix://:p@/run/redis.sock?db=3": {addrs: []string{"/run/redis.sock"}, password: "p", db: 3},
		"redis+sentinel://a,b:1,[::1]/m": {addrs: []string{"a:26379", "b:1", "[::1]:26379"}, master: "m"},
		"redis+sentinel://u:p%40@a/m/4":  {addrs: []string{"a:26379"}, user: "u", password: "p@", master: "m", db: 4},
		"redis+sentinel://a/m?protocol=2&sentinel_username=s&sentinel_password=q": {addrs: []string{"a:26379"}, master: "m", suser: "s", spasswd: "q", proto: 2},
		"rediss+sentinel://a,b/m":              {addrs: []string{"a:26379", "b:26379"}, master: "m", tls: true},
		"redis+cluster://[::1]:7000":           {addrs: []string{"[::1]:7000"}, cluster: true},
		"rediss+cluster://:p@a,b:2?protocol=3": {addrs: []string{"a:6379", "b:2"}, password: "p", cluster: true, tls: true, proto: 3},
	} {
		o, err := parseURL(url)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		got := want{o.Addrs, o.Username, o.Password, o.MasterName, o.SentinelUsername, o.SentinelPassword, o.DB, o.IsClusterMode, o.TLSConfig != nil, o.Protocol}
		if !slices.Equal(got.addrs, w.addrs) {
			t.Errorf("%s: servers %q, want %q", url, got.addrs, w.addrs)
		}
		got.addrs, w.addrs = nil, nil
		if got.user != w.user || got.password != w.password || got.master != w.master || got.suser != w.suser || got.spasswd != w.spasswd ||
			got.db != w.db || got.cluster != w.cluster || got.tls != w.tls || got.proto != w.proto {
			t.Errorf("%s: %+v, want %+v", url, got, w)
		}
		r, err := Open(Options{URL: url})
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		_, isCluster := r.client.(*redis.ClusterClient)
		if isCluster != w.cluster {
			t.Errorf("%s: a client of a Cluster: %v", url, isCluster)
		}
		_ = r.Close()
	}
}
