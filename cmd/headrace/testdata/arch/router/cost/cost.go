// Package cost breaks two rules.
package cost

import (
	_ "headrace/router"
	_ "net/http"
)
