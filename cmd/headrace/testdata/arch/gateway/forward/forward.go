// Package forward breaks two rules.
package forward

import _ "go.opentelemetry.io/otel/sdk"
import _ "headrace/gateway"
