#!/bin/sh
# Builds headrace and loadgen and compares headrace with nginx on loopback. Without arguments it runs the whole
# acceptance table and puts it into docs/benchmarks.md; arguments go to "loadgen compare" instead
# (--quick, --enforce, --only burst, ...). Needs Go and nginx; leaves nothing behind.
set -eu
cd "$(dirname "$0")/../.."

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
go build -trimpath -o "$build/" ./cmd/headrace ./cmd/loadgen

if [ $# -eq 0 ]; then
	set -- --update-docs docs/benchmarks.md
fi
"$build/loadgen" compare --headrace "$build/headrace" "$@"
