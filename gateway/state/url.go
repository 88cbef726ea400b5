package state

import (
	"errors"
	"net"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
)

// errURL does not quote what it is about: there may be a password in it.
var errURL = errors.New("state.redis is no address of a Redis, such as redis://127.0.0.1:6379/0, " +
	"redis+sentinel://sentinel-1,sentinel-2/mymaster/0 or redis+cluster://node-1,node-2")

// parseURL reads the address of one Redis, of the Sentinels that know which one it is, or of some nodes of a Cluster:
//
//	redis://[user:password@]host[:6379][/db]
//	rediss://…                                          over TLS
//	unix://[user:password@]/path[?db=0]
//	redis+sentinel://[user:password@]host[:26379],…/master[/db][?sentinel_username=…&sentinel_password=…]
//	redis+cluster://[user:password@]host[:6379],…
//	rediss+sentinel://… and rediss+cluster://…           over TLS
//
// User and password are those of the servers that hold the data. What else go-redis takes may follow behind a "?", such as protocol=2,
// pool_size=20 or skip_verify=true; times and repeats are ours.
func parseURL(s string) (*redis.UniversalOptions, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return nil, errURL
	}
	plain, kind, _ := strings.Cut(scheme, "+")
	switch {
	case kind == "" && (plain == "redis" || plain == "rediss" || plain == "unix"):
		o, err := redis.ParseURL(s)
		if err != nil {
			return nil, errURL
		}
		return universal(o, o.Addr), nil
	case plain != "redis" && plain != "rediss" || kind != "sentinel" && kind != "cluster":
		return nil, errURL
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	user, list := "", authority
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user, list = authority[:i+1], authority[i+1:]
	}
	port := "6379"
	if kind == "sentinel" {
		port = "26379"
	}
	var addrs []string
	for one := range strings.SplitSeq(list, ",") {
		u, err := url.Parse("redis://" + one)
		if err != nil || u.Hostname() == "" || u.User != nil || u.Path != "" {
			return nil, errURL
		}
		p := u.Port()
		if p == "" {
			p = port
		}
		addrs = append(addrs, net.JoinHostPort(u.Hostname(), p))
	}
	path, query, _ := strings.Cut(tail, "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, errURL
	}
	take := func(key string) string {
		v := q.Get(key)
		q.Del(key)
		return v
	}
	sentinelUser, sentinelPassword := take("sentinel_username"), take("sentinel_password")
	master := ""
	if kind == "sentinel" {
		master, path, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
		if master == "" {
			return nil, errURL
		}
	}
	if path = strings.Trim(path, "/"); kind == "cluster" && path != "" {
		return nil, errURL // a Cluster has one database
	}
	host, _, _ := net.SplitHostPort(addrs[0])
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	o, err := redis.ParseURL(plain + "://" + user + host + "/" + path + "?" + q.Encode())
	if err != nil {
		return nil, errURL
	}
	uo := universal(o, addrs...)
	uo.MasterName, uo.SentinelUsername, uo.SentinelPassword = master, sentinelUser, sentinelPassword
	uo.IsClusterMode = kind == "cluster"
	if uo.TLSConfig != nil && len(addrs) > 1 {
		uo.TLSConfig.ServerName = "" // go-redis takes each server's own
	}
	return uo, nil
}

// CheckURL tells whether Open would take an address. It connects to nothing.
func CheckURL(s string) error {
	_, err := parseURL(s)
	return err
}

func universal(o *redis.Options, addrs ...string) *redis.UniversalOptions {
	return &redis.UniversalOptions{
		Addrs: addrs, DB: o.DB, Protocol: o.Protocol, Username: o.Username, Password: o.Password, ClientName: o.ClientName, TLSConfig: o.TLSConfig,
		PoolFIFO: o.PoolFIFO, PoolSize: o.PoolSize, MinIdleConns: o.MinIdleConns, MaxIdleConns: o.MaxIdleConns, MaxActiveConns: o.MaxActiveConns,
		ConnMaxIdleTime: o.ConnMaxIdleTime, ConnMaxLifetime: o.ConnMaxLifetime,
	}
}
