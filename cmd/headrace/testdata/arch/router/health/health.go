// Package health breaks one rule twice.
package health

import _ "example.com/middle"
import _ "github.com/valyala/fasthttp"
