package config

import (
	"path/filepath"
	"time"
)

// Ledger says what is kept of requests, where and for how long.
type Ledger struct {
	// Path is a clean path, or "off".
	Path      string        `yaml:"path" otherwise:"ledger.db in state.dir" eg:"/var/lib/headrace/ledger.db" doc:"SQLite file of this one gateway, made soon after the start. \"off\" keeps the sums in memory, for as long as the process lives, and no requests." aka:"file|db|database"`
	Flush     time.Duration `yaml:"flush" above:"0" default:"1s" doc:"Between two writes: what a process that is killed loses at most." aka:"interval|flush_interval"`
	Keep      time.Duration `yaml:"keep" above:"0" default:"720h" doc:"How long requests are kept one by one." aka:"retention|keep_requests"`
	KeepSums  time.Duration `yaml:"keep_sums" above:"0" default:"8760h" doc:"How long the sums by hour are kept, of which reports are made." aka:"keep_rollups|rollups"`
	MaxSize   int64         `yaml:"max_size" unit:"bytes" above:"0" default:"1GiB" doc:"Size of the file beyond which the oldest requests go before their time; sums stay." aka:"size|max_bytes"`
	ListPrice *TokenPrice   `yaml:"list_price" otherwise:"that of a host of the fleet that is paid by its tokens" doc:"Price of an API of your choice, for reports of what the same answers would have cost there." aka:"compare|list|api_price"`
}

// settle finds the file.
func (l *Ledger) settle(c *Config) {
	if p := l.ListPrice; p != nil && !c.given("ledger.list_price.cached") {
		p.Cached = p.In
	}
	switch {
	case l.Path == Off:
		return
	case l.Path == "" && c.State.Dir == Off:
		l.Path = Off
		return
	case l.Path == "":
		l.Path = filepath.Join(c.State.Dir, "ledger.db")
	case !filepath.IsAbs(l.Path) && c.source != "": // as other names in the file
		l.Path = filepath.Join(filepath.Dir(c.source), l.Path)
	}
	l.Path = filepath.Clean(l.Path)
}
