// Command headrace may import what it wires.
package main

import (
	_ "headrace/cmd/headrace/internal/x"
	_ "headrace/gateway"
	_ "headrace/gateway/config"
	_ "headrace/providers/static"
	_ "headrace/telemetry"
)

func main() {}
