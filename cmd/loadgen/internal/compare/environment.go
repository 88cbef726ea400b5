package compare

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// Environment is what a reader must know to place the figures.
type Environment struct {
	Time    time.Time `json:"time"`
	CPU     string    `json:"cpu"` // model name
	Cores   int       `json:"cores"`
	Kernel  string    `json:"kernel"`
	Load    string    `json:"load"` // average of the last minute before the run, "" when unknown
	Nginx   string    `json:"nginx,omitempty"`
	Go      string    `json:"go"` // of the load generator and the mock
	Seconds float64   `json:"seconds"`
	// Others is the CPU that all other programs took during the run, in cores. The nearer to zero, the
	// more the figures are worth.
	Others Figure `json:"other_cores"`
}

func readEnvironment(ctx context.Context, nginx string) Environment {
	e := Environment{
		Time: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: runtime.GOARCH,
		Kernel: firstWord("/proc/sys/kernel/osrelease"), Load: firstWord("/proc/loadavg"),
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				e.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if nginx != "" {
		if b, err := exec.CommandContext(ctx, nginx, "-v").CombinedOutput(); err == nil {
			_, version, _ := strings.Cut(string(b), "nginx/")
			e.Nginx = strings.TrimSpace(version)
		}
	}
	return e
}

func firstWord(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	word, _, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	return word
}

// String is the line above a table.
func (e Environment) String() string {
	nginx := "no nginx"
	if e.Nginx != "" {
		nginx = "nginx " + e.Nginx
	}
	return fmt.Sprintf("%s · %s, %d cores · Linux %s · %s · %s · load before %s, other programs took %s cores meanwhile · %.0f s",
		e.Time.Format(time.DateOnly), e.CPU, e.Cores, e.Kernel, nginx, e.Go, e.Load, number(e.Others), e.Seconds)
}
