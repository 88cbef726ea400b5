// Package admission breaks two rules.
package admission

import (
	_ "headrace/gateway/config"
	_ "headrace/gateway/forward/wire" // allowed
	_ "headrace/providers"
)
