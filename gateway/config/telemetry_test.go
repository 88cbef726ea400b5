package config

import (
	"strconv"
	"strings"
	"testing"
)

func TestTelemetryFromTheEnvironment(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		env  []string // names and values in turn
		want string   // otlp, protocol, traces, metrics, logs, sample
	}{
		"nothing":                    {"", nil, " http true true false 0.1"},
		"one address":                {"", []string{EnvOTLP, "http://c:4318"}, "http://c:4318 http true true false 0.1"},
		"the file wins":              {"telemetry: {otlp: 'https://file:1', sample: 0.5}", []string{EnvOTLP, "http://c:4318", EnvOTelSampler, "always_on"}, "https://file:1 http true true false 0.5"},
		"traces only":                {"", []string{EnvOTLPTraces, "http://c:4318/v1/traces"}, "http://c:4318/v1/traces http true false false 0.1"},
		"by gRPC, with logs":         {"", []string{EnvOTLP, "http://c:4317", EnvOTLPProtocol, "grpc", EnvOTelLogs, "otlp"}, "http://c:4317 grpc true true true 0.1"},
		"no metrics":                 {"", []string{EnvOTLP, "http://c:4317", EnvOTelMetrics, "none"}, "http://c:4317 http true false false 0.1"},
		"a sampler":                  {"", []string{EnvOTelSampler, "parentbased_traceidratio", EnvOTelRatio, "0.02"}, " http true true false 0.02"},
		"none sampled":               {"", []string{EnvOTelSampler, "always_off"}, " http true true false 0"},
		"a sampler nobody knows":     {"", []string{EnvOTelSampler, "xray"}, " http true true false 0.1"},
		"all of it off":              {"telemetry: {otlp: 'https://file:1'}", []string{EnvOTelDisabled, "true"}, " http true true false 0.1"},
		"words that are not spoken":  {"", []string{EnvOTLPProtocol, "http/json"}, "environment variable OTEL_EXPORTER_OTLP_PROTOCOL: names no protocol that is spoken; write http/protobuf or grpc"},
		"a share that is none":       {"", []string{EnvOTelSampler, "traceidratio", EnvOTelRatio, "2"}, "environment variable OTEL_TRACES_SAMPLER_ARG: is no share; write a number from 0 to 1"},
		"no address":                 {"telemetry: {otlp: 'collector:4318'}", nil, `f.yaml:1:19: telemetry.otlp: "collector:4318" is no base URL; write http:// or https://, host and port, such as http://collector:4318; credentials go into OTEL_EXPORTER_OTLP_HEADERS`},
		"an address with a password": {"", []string{EnvOTLP, "http://u:secret@c:4318"}, "environment variable OTEL_EXPORTER_OTLP_ENDPOINT or one by signal: is no base URL; write http:// or https://, host and port"},
	} {
		t.Run(name, func(t *testing.T) {
			vars := map[string]string{}
			for i := 0; i < len(c.env); i += 2 {
				vars[c.env[i]] = c.env[i+1]
			}
			cfg, err := Parse("f.yaml", []byte(c.file), Overrides{}, func(n string) (string, bool) { v, ok := vars[n]; return v, ok })
			var got string
			if err != nil {
				got = err.Error()
			} else {
				x := &cfg.Telemetry
				got = strings.Join([]string{x.OTLP, x.Protocol, strconv.FormatBool(x.OTLPTraces), strconv.FormatBool(x.OTLPMetrics), strconv.FormatBool(x.OTLPLogs), strconv.FormatFloat(x.Sample, 'g', -1, 64)}, " ")
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}
