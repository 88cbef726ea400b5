package config

import (
	"net/url"
	"strconv"
)

// Names of OpenTelemetry's environment variables that stand in for keys which the file leaves out. Its exporters know more.
const (
	EnvOTelDisabled = "OTEL_SDK_DISABLED"
	EnvOTLP         = "OTEL_EXPORTER_OTLP_ENDPOINT"
	EnvOTLPTraces   = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	EnvOTLPMetrics  = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
	EnvOTLPLogs     = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"
	EnvOTLPProtocol = "OTEL_EXPORTER_OTLP_PROTOCOL"
	EnvOTelTraces   = "OTEL_TRACES_EXPORTER"
	EnvOTelMetrics  = "OTEL_METRICS_EXPORTER"
	EnvOTelLogs     = "OTEL_LOGS_EXPORTER"
	EnvOTelSampler  = "OTEL_TRACES_SAMPLER"
	EnvOTelRatio    = "OTEL_TRACES_SAMPLER_ARG"
)

// settle takes what the environment says where the file says nothing, and checks the whole.
func (t *Telemetry) settle(c *Config, getenv func(string) (string, bool)) []Problem {
	env := func(name string) string { v, _ := getenv(name); return v }
	if !c.given("telemetry.otlp") {
		all, nowhere := env(EnvOTLP), []*bool(nil)
		for _, s := range [...]struct {
			name string
			on   *bool
			key  string
		}{{EnvOTLPTraces, &t.OTLPTraces, "telemetry.otlp_traces"}, {EnvOTLPMetrics, &t.OTLPMetrics, "telemetry.otlp_metrics"}, {EnvOTLPLogs, &t.OTLPLogs, "telemetry.otlp_logs"}} {
			if own := env(s.name); own != "" {
				t.OTLP, t.FromEnv = own, true
			} else if all == "" && !c.given(s.key) {
				nowhere = append(nowhere, s.on)
			}
		}
		switch {
		case all != "":
			t.OTLP, t.FromEnv = all, true
		case t.FromEnv:
			for _, on := range nowhere {
				*on = false // nobody has said where to
			}
		}
	}
	for _, s := range [...]struct {
		name, key string
		on        *bool
	}{{EnvOTelTraces, "telemetry.otlp_traces", &t.OTLPTraces}, {EnvOTelMetrics, "telemetry.otlp_metrics", &t.OTLPMetrics}, {EnvOTelLogs, "telemetry.otlp_logs", &t.OTLPLogs}} {
		if v := env(s.name); v != "" && !c.given(s.key) {
			*s.on = v == "otlp"
		}
	}
	var problems []Problem
	if v := env(EnvOTLPProtocol); v != "" && !c.given("telemetry.protocol") {
		switch v {
		case "grpc":
			t.Protocol = "grpc"
		case "http/protobuf":
			t.Protocol = "http"
		default:
			problems = append(problems, Problem{Source: "environment variable " + EnvOTLPProtocol, What: "names no protocol that is spoken", Hint: "write http/protobuf or grpc"})
		}
	}
	if !c.given("telemetry.sample") {
		problems = append(problems, t.sampler(env(EnvOTelSampler), env(EnvOTelRatio))...)
	}
	if env(EnvOTelDisabled) == "true" {
		t.OTLP, t.FromEnv = "", false
	}
	if t.OTLP != "" {
		if u, err := url.Parse(t.OTLP); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			if t.FromEnv {
				problems = append(problems, Problem{Source: "environment variable " + EnvOTLP + " or one by signal", What: "is no base URL", Hint: "write http:// or https://, host and port"})
			} else if c.good("telemetry.otlp") {
				problems = append(problems, c.problem("telemetry.otlp", c.shown("telemetry.otlp", t.OTLP)+"is no base URL", "write http:// or https://, host and port, such as http://collector:4318; credentials go into OTEL_EXPORTER_OTLP_HEADERS"))
			}
		}
	}
	return problems
}

// sampler reads OpenTelemetry's way to write a share. What callers decide is telemetry.trust.
func (t *Telemetry) sampler(name, ratio string) []Problem {
	switch name {
	case "always_on", "parentbased_always_on":
		t.Sample = 1
	case "always_off", "parentbased_always_off":
		t.Sample = 0
	case "traceidratio", "parentbased_traceidratio":
		v, err := strconv.ParseFloat(ratio, 64)
		if err != nil || !(v >= 0 && v <= 1) { //nolint:staticcheck // NaN
			return []Problem{{Source: "environment variable " + EnvOTelRatio, What: "is no share", Hint: "write a number from 0 to 1"}}
		}
		t.Sample = v
	}
	return nil
}
