// Package gateway keeps the rules.
package gateway

import (
	_ "github.com/valyala/fasthttp"
	_ "headrace/gateway/forward/wire"
	_ "headrace/router"
)
