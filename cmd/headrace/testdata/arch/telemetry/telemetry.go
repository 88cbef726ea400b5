// Package telemetry may import the SDK.
package telemetry

import _ "go.opentelemetry.io/otel/sdk"
