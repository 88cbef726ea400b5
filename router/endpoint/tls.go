package endpoint

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// TLS is how an https endpoint proves who it is. It is comparable, so that a change is seen.
type TLS struct {
	// Roots are the certificates to trust, as PEM text; "" means the system's.
	Roots string
	// AnyName accepts a certificate below Roots whatever name it is for, and a root that lacks the
	// keyCertSign usage, which crypto/x509 refuses: hosts rented at Vast.ai show a certificate for
	// 0.0.0.0 below such a root. Without Roots it means nothing.
	AnyName bool
	// ServerName is the name to expect in the certificate; "" means the URL's host.
	ServerName string
	// Pin is the SHA-256 of the one certificate that is accepted, in hex; nothing else of it is looked at then.
	Pin string
	// InsecureSkipVerify accepts any certificate: only when the operator asked for it.
	InsecureSkipVerify bool
}

// Encrypted tells whether requests travel to the endpoint under TLS, to somebody who has proved to be it.
func (e *Endpoint) Encrypted() bool {
	return strings.HasPrefix(e.BaseURL, "https://") && !e.TLS.InsecureSkipVerify
}

// ErrPin says that a host showed another certificate than the one it is known by.
var ErrPin = errors.New("the certificate is not the pinned one")

// Config returns the TLS settings for a connection to host, which is a name or an address without port.
func (t TLS) Config(host string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, InsecureSkipVerify: t.InsecureSkipVerify} //nolint:gosec // the operator asked for it by name
	if t.ServerName != "" {
		cfg.ServerName = t.ServerName
	}
	if t.Pin != "" {
		want, err := hex.DecodeString(t.Pin)
		if err != nil || len(want) != sha256.Size {
			return nil, errors.New("tls pin is not 64 hexadecimal digits")
		}
		cfg.InsecureSkipVerify = true //nolint:gosec // VerifyConnection looks at the very certificate
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 || sha256.Sum256(s.PeerCertificates[0].Raw) != [sha256.Size]byte(want) {
				return ErrPin
			}
			return nil
		}
		return cfg, nil
	}
	if t.Roots == "" {
		return cfg, nil
	}
	roots, err := parseRoots(t.Roots)
	if err != nil {
		return nil, err
	}
	if t.AnyName && !t.InsecureSkipVerify {
		cfg.InsecureSkipVerify = true //nolint:gosec // VerifyConnection checks the chain
		cfg.VerifyConnection = func(s tls.ConnectionState) error { return verifyBelow(roots, s.PeerCertificates) }
		return cfg, nil
	}
	cfg.RootCAs = x509.NewCertPool()
	for _, c := range roots {
		cfg.RootCAs.AddCert(c)
	}
	return cfg, nil
}

func parseRoots(text string) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("tls roots: %w", err)
		}
		roots = append(roots, c)
	}
	if len(roots) == 0 {
		return nil, errors.New("tls roots hold no PEM certificate")
	}
	return roots, nil
}

// verifyBelow accepts a chain whose certificates each sign the one before and whose last is signed by a root.
// Names, usages and dates of the leaf are not looked at: Vast.ai's hosts may show an expired one.
func verifyBelow(roots, chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("no certificate was shown")
	}
	cur := chain[0]
	for i := 1; ; i++ {
		for _, r := range roots {
			if r.Equal(cur) || r.CheckSignature(cur.SignatureAlgorithm, cur.RawTBSCertificate, cur.Signature) == nil {
				return nil
			}
		}
		if i >= len(chain) {
			return errors.New("the certificate is not signed by a trusted root")
		}
		next := chain[i]
		if !next.IsCA || next.CheckSignature(cur.SignatureAlgorithm, cur.RawTBSCertificate, cur.Signature) != nil {
			return errors.New("the certificates shown do not form a chain")
		}
		cur = next
	}
}
