// Package middle stands for a module that brings a forbidden one with it.
package middle

import _ "github.com/valyala/fasthttp"
