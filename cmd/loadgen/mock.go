package main

import (
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"headrace/cmd/loadgen/internal/h1"
	"headrace/cmd/loadgen/internal/mock"
	"headrace/cmd/loadgen/internal/rig"
)

func newMock() *cobra.Command {
	s := mock.Defaults()
	listen := defaultMock
	c := &cobra.Command{
		Use:   "mock",
		Short: "Run the mock OpenAI upstream",
		Long: "mock answers chat completions, plain and streamed, with prepared bytes until it is interrupted. Its\n" +
			"settings can be changed while it runs: POST /control?tokens=64&gap=20ms&delay=0s&body=256&batch=1&usage=0.",
		Example: `  loadgen mock --listen 127.0.0.1:9100 --tokens 200 --gap 20ms
  curl -N http://127.0.0.1:9100/v1/chat/completions -d '{"model":"mock-model","stream":true}'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := mock.New(s)
			if err != nil {
				return checked(err)
			}
			if err := h1.CheckLoopback(listen); err != nil {
				return checked(fmt.Errorf("listen: %w", err))
			}
			if _, err := rig.RaiseFileLimit(); err != nil {
				c.PrintErrln(err) // few connections are served all the same
			}
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			c.PrintErrf("mock upstream on http://%s/v1\n", l.Addr())
			return m.Serve(c.Context(), l)
		},
	}
	f := c.Flags()
	f.StringVar(&listen, "listen", listen, "loopback `HOST:PORT`")
	f.StringVar(&s.Model, "model", s.Model, "`NAME` of the model served")
	f.IntVar(&s.Tokens, "tokens", s.Tokens, "content chunks of a stream")
	f.IntVar(&s.Body, "body", s.Body, "bytes of content in an answer that is no stream")
	f.IntVar(&s.Batch, "batch", s.Batch, "content chunks per write when --gap is 0")
	f.DurationVar(&s.Gap, "gap", 0, "time between the content chunks of a stream")
	f.DurationVar(&s.Delay, "delay", 0, "time before the response head")
	f.BoolVar(&s.Usage, "always-usage", false, "send the usage chunk even when it is not asked for")
	return c
}
