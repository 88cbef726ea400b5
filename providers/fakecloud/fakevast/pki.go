package fakevast

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// Certificate is which certificate a host shows.
type Certificate uint8

// Certificates.
const (
	Signed          Certificate = iota // by Vast's root, for the address 0.0.0.0
	SignedWithIP                       // by Vast's root, for the loopback addresses too
	SelfSigned                         // by nobody: signing failed
	SignedButLapsed                    // by Vast's root, expired
)

// authority is the root that signs the hosts' certificates.
type authority struct {
	now  time.Time
	root *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
	leaf *ecdsa.PrivateKey // of all hosts
}

// newAuthority makes a root as the real one must be: with a path length, and without the extension of key usages that this
// asks for. The vendor's client says that the usage keyCertSign is missing, and that OpenSSL takes the root once it is told
// not to be strict; it would not take one whose key usages are given and leave keyCertSign out.
func newAuthority(now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "jvastai root of the fake", Organization: []string{"Vast.ai Inc."}},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: 1,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return &authority{now, root, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), leaf}, nil
}

// issue makes a host's certificate.
func (a *authority) issue(name string, kind Certificate) *tls.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    a.now.Add(-time.Hour), NotAfter: a.now.AddDate(1, 0, 0),
		IPAddresses: []net.IP{net.IPv4zero.To4()},
	}
	parent, key := a.root, a.key
	switch kind {
	case SignedWithIP:
		c.IPAddresses = append(c.IPAddresses, net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2), net.IPv4(127, 0, 0, 3))
	case SelfSigned:
		parent, key = c, a.leaf
	case SignedButLapsed:
		c.NotBefore, c.NotAfter = a.now.AddDate(-1, 0, 0), a.now.Add(-24*time.Hour)
	case Signed:
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &a.leaf.PublicKey, key)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leaf}
}
