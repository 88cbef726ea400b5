package main

import (
	"crypto/tls"
	"fmt"
	"net"

	"headrace/gateway"
	"headrace/gateway/config"
	"headrace/gateway/listen"
)

func (a *app) open(cfg *config.Config, given sockets) (err error) {
	defer func() {
		if err == nil {
			err = given.left()
		}
		given.close()
	}()
	for _, l := range cfg.Listen {
		var tc *tls.Config
		if l.TLS != nil {
			cert, err := listen.LoadCertificate(l.TLS.Cert, l.TLS.Key)
			if err != nil {
				return err
			}
			a.certs = append(a.certs, cert)
			tc = cert.Config()
		}
		ln, err := given.listen(l.Address)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		a.listeners = append(a.listeners, gateway.Listener{Listener: ln, TLS: tc})
	}
	if cfg.Admin == "off" {
		return nil
	}
	ln, err := given.listen(cfg.Admin)
	if err != nil {
		return fmt.Errorf("listen for the admin API: %w", err)
	}
	a.admin = ln
	return nil
}

func (a *app) closeListeners() {
	for _, l := range a.listeners {
		_ = l.Close()
	}
	if a.admin != nil {
		_ = a.admin.Close()
	}
}

// checkBound finds what a config may not say while the listeners of an earlier one are open.
func (a *app) checkBound(cfg *config.Config) error {
	var public []net.Addr
	for _, l := range a.listeners {
		public = append(public, l.Addr())
	}
	var admin net.Addr
	if a.admin != nil {
		admin = a.admin.Addr()
	}
	return cfg.CheckBound(public, admin)
}

// hostOf is the host of an address.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	return host
}
