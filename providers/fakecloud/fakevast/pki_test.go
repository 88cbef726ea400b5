package fakevast_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"

	"headrace/providers/fakecloud/fakevast"
)

// TestRoot checks that the root is as flawed as the real one and no worse: the vendor's client clears OpenSSL's strict flag
// for it, and OpenSSL refuses at any rate a CA whose key usages are given without keyCertSign.
func TestRoot(t *testing.T) {
	c := start(t, fakevast.Config{})
	block, _ := pem.Decode([]byte(call(t, "GET", c.ConsoleURL()+"/static/jvastai_root.cer", "").body))
	if block == nil {
		t.Fatal("no PEM")
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !root.IsCA || root.MaxPathLen != 1 || root.KeyUsage != 0 {
		t.Errorf("CA %v, path length %d, key usage %b", root.IsCA, root.MaxPathLen, root.KeyUsage)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	for kind, want := range map[fakevast.Certificate]string{
		fakevast.SignedWithIP:    "",
		fakevast.Signed:          "certificate is valid for 0.0.0.0, not 127.0.0.1",
		fakevast.SelfSigned:      "certificate is valid for 0.0.0.0, not 127.0.0.1",
		fakevast.SignedButLapsed: "expired",
	} {
		i := c.AddInstance(fakevast.InstanceConfig{Template: fakevast.Portal, Portal: fakevast.PortalConfig{HTTPS: true, NoAuth: true, Certificate: kind}})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, i.URL()+"/v1/models", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}
		resp, err := tr.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("certificate %d: %v, want %q", kind, err, want)
		}
	}
}
