package endpoint_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

// cert is a certificate with its key.
type cert struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

func (c cert) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func (c cert) pin() string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// issue makes a certificate that by signs, or that signs itself.
func issue(t *testing.T, by *cert, change func(*x509.Certificate)) cert {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "jupyter.vast.ai"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4zero},
	}
	if change != nil {
		change(c)
	}
	parent, signer := c, key
	if by != nil {
		parent, signer = by.Certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert{made, key}
}

// handshake connects to a server that shows chain, by the settings, and returns why it failed.
func handshake(t *testing.T, s endpoint.TLS, host string, chain ...cert) error {
	t.Helper()
	cfg, err := s.Config(host)
	if err != nil {
		return err
	}
	shown := tls.Certificate{PrivateKey: chain[0].key}
	for _, c := range chain {
		shown.Certificate = append(shown.Certificate, c.Raw)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	served := make(chan struct{})
	defer func() { <-served }()
	go func() {
		defer close(served)
		far, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = far.Close() }()
		_ = tls.Server(far, &tls.Config{Certificates: []tls.Certificate{shown}, MinVersion: tls.VersionTLS12}).HandshakeContext(ctx)
	}()
	near, err := (&net.Dialer{}).DialContext(ctx, "tcp4", ln.Addr().String())
	if err != nil {
		_ = ln.Close()
		t.Fatal(err)
	}
	defer func() { _ = near.Close() }()
	err = tls.Client(near, cfg).HandshakeContext(ctx)
	if ctx.Err() != nil {
		t.Fatal(ctx.Err())
	}
	return err
}

func TestTLSModes(t *testing.T) {
	ca := func(c *x509.Certificate) {
		c.Subject.CommonName, c.IsCA, c.BasicConstraintsValid, c.KeyUsage = "ca", true, true, x509.KeyUsageCertSign
	}
	// Vast.ai's root has a path length and no keyCertSign.
	vast := issue(t, nil, func(c *x509.Certificate) {
		c.Subject.CommonName, c.IsCA, c.BasicConstraintsValid, c.MaxPathLen = "jvastai root", true, true, 1
	})
	leaf := issue(t, &vast, nil)
	expired := issue(t, &vast, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	named := issue(t, &vast, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(203, 0, 113, 10)} })
	between := issue(t, &vast, ca)
	below := issue(t, &between, nil)
	tenant := issue(t, &leaf, nil) // signed with a key that is good for a leaf alone
	self := issue(t, nil, nil)
	// A usual root, with a certificate for a name.
	usual := issue(t, nil, ca)
	web := issue(t, &usual, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"gpu.example"}, nil })
	forged := issue(t, nil, func(c *x509.Certificate) { ca(c); c.Subject = vast.Subject }) // Vast.ai's root by name alone
	byForged := issue(t, &forged, nil)

	const host = "203.0.113.10"
	anyName := endpoint.TLS{Roots: vast.pem(), AnyName: true}
	for name, tc := range map[string]struct {
		set   endpoint.TLS
		host  string
		chain []cert
		ok    bool
	}{
		"vast: for 0.0.0.0":                       {anyName, host, []cert{leaf}, true},
		"vast: the root is shown too":             {anyName, host, []cert{leaf, vast}, true},
		"vast: expired":                           {anyName, host, []cert{expired}, true},
		"vast: below an intermediate":             {anyName, host, []cert{below, between}, true},
		"vast: the intermediate is not shown":     {anyName, host, []cert{below}, false},
		"vast: a tenant signs with his own":       {anyName, host, []cert{tenant, leaf}, false},
		"vast: self-signed":                       {anyName, host, []cert{self}, false},
		"vast: self-signed beside a good one":     {anyName, host, []cert{self, leaf}, false},
		"vast: another root":                      {anyName, host, []cert{web}, false},
		"vast: another root of the same name":     {anyName, host, []cert{byForged, forged}, false},
		"vast: one of two roots":                  {endpoint.TLS{Roots: usual.pem() + vast.pem(), AnyName: true}, host, []cert{leaf}, true},
		"roots: by name":                          {endpoint.TLS{Roots: usual.pem()}, "gpu.example", []cert{web}, true},
		"roots: by server_name":                   {endpoint.TLS{Roots: usual.pem(), ServerName: "gpu.example"}, host, []cert{web}, true},
		"roots: other name":                       {endpoint.TLS{Roots: usual.pem()}, "other.example", []cert{web}, false},
		"roots: Vast.ai's is refused by x509":     {endpoint.TLS{Roots: vast.pem()}, host, []cert{named}, false},
		"system: self-signed":                     {endpoint.TLS{}, host, []cert{named}, false},
		"system: any name means nothing":          {endpoint.TLS{AnyName: true}, host, []cert{named}, false},
		"pin: the one":                            {endpoint.TLS{Pin: self.pin()}, host, []cert{self}, true},
		"pin: the one, expired":                   {endpoint.TLS{Pin: expired.pin()}, host, []cert{expired}, true},
		"pin: in capitals":                        {endpoint.TLS{Pin: strings.ToUpper(self.pin())}, host, []cert{self}, true},
		"pin: another":                            {endpoint.TLS{Pin: self.pin()}, host, []cert{leaf, self}, false},
		"pin: another, though insecure was asked": {endpoint.TLS{Pin: self.pin(), InsecureSkipVerify: true}, host, []cert{leaf}, false},
		"insecure: anything":                      {endpoint.TLS{InsecureSkipVerify: true}, host, []cert{self}, true},
		"pin that is none":                        {endpoint.TLS{Pin: "abc"}, host, []cert{self}, false},
		"pin of another length":                   {endpoint.TLS{Pin: self.pin()[:62]}, host, []cert{self}, false},
		"roots that are none":                     {endpoint.TLS{Roots: "hello", AnyName: true}, host, []cert{leaf}, false},
		"roots that are broken":                   {endpoint.TLS{Roots: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))}, host, []cert{leaf}, false},
		"roots that are a key":                    {endpoint.TLS{Roots: string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x")}))}, host, []cert{leaf}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := handshake(t, tc.set, tc.host, tc.chain...); (err == nil) != tc.ok {
				t.Errorf("handshake: %v, want ok = %v", err, tc.ok)
			}
		})
	}
	t.Run("pin: the error is known", func(t *testing.T) {
		if err := handshake(t, endpoint.TLS{Pin: self.pin()}, host, leaf); !errors.Is(err, endpoint.ErrPin) {
			t.Errorf("%v", err)
		}
	})
	// A certificate is public: without its key nobody gets through, whatever is known of it.
	t.Run("pin: shown by somebody without its key", func(t *testing.T) {
		if err := handshake(t, endpoint.TLS{Pin: self.pin()}, host, cert{self.Certificate, leaf.key}); err == nil {
			t.Error("taken")
		}
	})
}

func TestEncrypted(t *testing.T) {
	for name, tc := range map[string]struct {
		ep   endpoint.Endpoint
		want bool
	}{
		"plain":    {endpoint.Endpoint{BaseURL: "http://a/v1"}, false},
		"system":   {endpoint.Endpoint{BaseURL: "https://a/v1"}, true},
		"pinned":   {endpoint.Endpoint{BaseURL: "https://a/v1", TLS: endpoint.TLS{Pin: "x"}}, true},
		"insecure": {endpoint.Endpoint{BaseURL: "https://a/v1", TLS: endpoint.TLS{InsecureSkipVerify: true}}, false},
	} {
		if got := tc.ep.Encrypted(); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
