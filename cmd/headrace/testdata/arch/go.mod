module headrace

go 1.26.0

require (
	example.com/middle v0.0.0
	github.com/valyala/fasthttp v0.0.0
	go.opentelemetry.io/otel/sdk v0.0.0
)

replace (
	example.com/middle => ./vendored/middle
	github.com/valyala/fasthttp => ./vendored/fasthttp
	go.opentelemetry.io/otel/sdk => ./vendored/sdk
)
