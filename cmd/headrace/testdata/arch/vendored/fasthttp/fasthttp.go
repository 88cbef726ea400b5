// Package fasthttp stands for the module of that name.
package fasthttp
