package mock

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// Bounds of the settings; they keep a slip from filling the memory or holding connections for hours.
const (
	MaxTokens = 100_000
	MaxBody   = 1 << 20 // bytes
	MaxBatch  = 1000
	MaxPause  = 10 * time.Second // for Gap and Delay
)

// Settings are what a test may change between runs.
type Settings struct {
	Model  string        // name in answers and in the list of models
	Tokens int           // content chunks of a stream
	Body   int           // bytes of content in an answer that is no stream
	Batch  int           // content chunks per write when Gap is 0
	Gap    time.Duration // between the content chunks of a stream
	Delay  time.Duration // before the response head
	Usage  bool          // send the usage chunk even when it is not asked for
}

// Defaults are the settings of a mock that was told nothing.
func Defaults() Settings {
	return Settings{Model: "mock-model", Tokens: 64, Body: 256, Batch: 1}
}

// Validate names everything that is out of bounds.
func (s Settings) Validate() error {
	var errs []error
	number := func(name string, v, least, most int) {
		if v < least || v > most {
			errs = append(errs, fmt.Errorf("%s %d: want %d to %d", name, v, least, most))
		}
	}
	pause := func(name string, d time.Duration) {
		if d < 0 || d > MaxPause {
			errs = append(errs, fmt.Errorf("%s %v: want 0 to %v", name, d, MaxPause))
		}
	}
	if s.Model == "" {
		errs = append(errs, errors.New("model: want a name"))
	}
	number("tokens", s.Tokens, 1, MaxTokens)
	number("body", s.Body, 0, MaxBody)
	number("batch", s.Batch, 1, MaxBatch)
	pause("gap", s.Gap)
	pause("delay", s.Delay)
	return errors.Join(errs...)
}

// Query renders the settings for POST /control, all but the model.
func (s Settings) Query() string {
	usage := "0"
	if s.Usage {
		usage = "1"
	}
	return fmt.Sprintf("tokens=%d&body=%d&batch=%d&gap=%s&delay=%s&usage=%s", s.Tokens, s.Body, s.Batch, s.Gap, s.Delay, usage)
}

// apply returns s with the settings that the query of a control request names.
func (s Settings) apply(query string) (Settings, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return s, err
	}
	var errs []error
	for name := range values {
		v := values.Get(name)
		var err error
		switch name {
		case "tokens":
			s.Tokens, err = strconv.Atoi(v)
		case "body":
			s.Body, err = strconv.Atoi(v)
		case "batch":
			s.Batch, err = strconv.Atoi(v)
		case "gap":
			s.Gap, err = time.ParseDuration(v)
		case "delay":
			s.Delay, err = time.ParseDuration(v)
		case "usage":
			s.Usage, err = strconv.ParseBool(v)
		default:
			err = fmt.Errorf("unknown setting %q", name)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return s, err
	}
	return s, s.Validate()
}
