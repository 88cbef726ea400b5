// Package static breaks two rules.
package static

import _ "headrace/cmd/headrace/internal/x"
import _ "headrace/gateway"
