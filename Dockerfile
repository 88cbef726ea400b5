# Needs BuildKit (Docker 20.10 or later), and no frontend from a registry.
#
#   docker build -t headrace .
#   docker run -p 127.0.0.1:8080:8080 -e HEADRACE_LISTEN=:8080 -e HEADRACE_ALLOW_UNAUTHENTICATED=true \
#     -v $PWD/headrace.yaml:/etc/headrace/headrace.yaml:ro --read-only --cap-drop ALL headrace
#
# docs/deploy.md has the rest. The same sources, base image and arguments give the same binary: paths are trimmed, the build id is left out and
# nothing of the build machine or its clock goes in.

FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
ARG TARGETOS=linux
ARG TARGETARCH
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download && go mod verify
COPY . .
ARG VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -tags grpcnotrace -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$VERSION" -o /out/headrace ./cmd/headrace && \
    mkdir /out/state

FROM gcr.io/distroless/static:nonroot
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="headrace" \
      org.opencontainers.image.description="Smart inference gateway for rented GPU hosts, OpenAI-compatible" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/headrace /usr/local/bin/headrace
COPY LICENSE /usr/share/doc/headrace/LICENSE
# A volume put here belongs to the user below: what outlives the process lies in it, and held_file can.
COPY --from=build --chown=65532:65532 /out/state /var/lib/headrace
# 65532 is nonroot: by number, so that Kubernetes can check runAsNonRoot.
USER 65532:65532
ENV HEADRACE_STATE_DIR=/var/lib/headrace
# headrace.yaml is looked for here; without one, the environment configures.
WORKDIR /etc/headrace
# 8080 OpenAI surface, 9090 admin. Both bind loopback unless the configuration says otherwise.
EXPOSE 8080 9090
# Drain starts at SIGTERM; give it more than timeouts.drain before SIGKILL (docker run --stop-timeout 45).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["/usr/local/bin/headrace", "check", "--ready"]
ENTRYPOINT ["/usr/local/bin/headrace"]
CMD ["serve"]
