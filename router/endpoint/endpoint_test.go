package endpoint_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"headrace/router/endpoint"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	ep := endpoint.Endpoint{ID: "static:a", APIKey: "sk-very-secret"}
	j, err := json.Marshal(ep)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", ep.APIKey, "endpoint", ep)
	for how, got := range map[string]string{
		"%v": fmt.Sprintf("%v", ep), "%+v": fmt.Sprintf("%+v", ep), "%#v": fmt.Sprintf("%#v", ep), "%s": fmt.Sprintf("%s, %s", ep.APIKey, &ep.APIKey),
		"%q": fmt.Sprintf("%q", ep.APIKey), "%x": fmt.Sprintf("%x", ep.APIKey), "JSON": string(j), "slog": log.String(),
	} {
		if strings.Contains(got, "very-secret") || strings.Contains(got, fmt.Sprintf("%x", "very-secret")) {
			t.Errorf("%s shows the secret: %s", how, got)
		}
	}
	if ep.APIKey.Reveal() != "sk-very-secret" {
		t.Error("Reveal does not return the secret")
	}
}

func TestWords(t *testing.T) {
	for tenure := endpoint.TenureUnknown; tenure <= endpoint.TenurePerToken; tenure++ {
		if got, ok := endpoint.ParseTenure(tenure.String()); !ok || got != tenure {
			t.Errorf("%s reads back as %s, %v", tenure, got, ok)
		}
	}
	if _, ok := endpoint.ParseTenure("rented"); ok {
		t.Error("an unknown word was taken for a tenure")
	}
}
