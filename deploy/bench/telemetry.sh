#!/bin/sh
# What telemetry costs: the same gateway without any, with metrics and unsampled traces, with a tenth of its requests traced, and
# with all of them, in interleaved rounds on loopback. Traces go to the collector that "make collector" has built, or to nobody.
# Arguments go to "loadgen compare", such as --rounds 9. Needs Go; leaves nothing behind.
set -eu
cd "$(dirname "$0")/../.."

build=$(mktemp -d)
collector=
trap 'test -z "$collector" || kill "$collector"; rm -rf "$build"' EXIT
CGO_ENABLED=0 go build -trimpath -o "$build/" ./cmd/headrace ./cmd/loadgen

otelcol=${HEADRACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/headrace}/bin/otelcol
port=14318
if [ -x "$otelcol" ]; then
	cat >"$build/collector.yaml" <<-YAML
		receivers: {otlp: {protocols: {http: {endpoint: "127.0.0.1:$port"}}}}
		exporters: {debug: {verbosity: basic, sampling_initial: 1, sampling_thereafter: 1000000}}
		service:
		  telemetry: {metrics: {level: none}, logs: {level: error}}
		  pipelines:
		    traces: {receivers: [otlp], exporters: [debug]}
		    metrics: {receivers: [otlp], exporters: [debug]}
	YAML
	"$otelcol" --config "$build/collector.yaml" &
	collector=$!
else
	echo "no collector: what is sent goes nowhere (make collector)" >&2
fi

config() { # NAME, and its section telemetry
	cat >"$build/$1.yaml" <<-YAML
		admin: "off"
		log: {level: warn, access: false}
		telemetry: $2
		providers: {static: [{name: mock, base_url: "\${UPSTREAM}", models: [mock-model], price: {usd_per_hour: 1}}]}
	YAML
}
otlp="otlp: \"http://127.0.0.1:$port\""
config off '{metrics: false}'
config metrics '{metrics: true}'
config unsampled "{$otlp, sample: 0}"
config tenth "{$otlp, sample: 0.1}"
config all "{$otlp, sample: 1}"

set -- --nginx none --judge off --only plain,burst "$@"
for c in off metrics unsampled tenth all; do
	set -- --proxy-cmd "$c=env UPSTREAM=http://{upstream}/v1 HEADRACE_STATE_DIR=$build/$c.state $build/headrace serve --config $build/$c.yaml --listen {listen}" "$@"
done
"$build/loadgen" compare "$@"
