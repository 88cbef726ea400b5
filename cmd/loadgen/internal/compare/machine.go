package compare

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machine is a reading of how much CPU all programs have used, and we and ours of it.
type machine struct {
	at        time.Time
	all, ours float64 // seconds; NaN when unknown
}

func readMachine() machine {
	m := machine{at: time.Now(), all: math.NaN(), ours: math.NaN()}
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		if v, err := busy(string(b)); err == nil {
			m.all = v
		}
	}
	var self, children syscall.Rusage // of children: those that have ended
	if syscall.Getrusage(syscall.RUSAGE_SELF, &self) == nil && syscall.Getrusage(syscall.RUSAGE_CHILDREN, &children) == nil {
		m.ours = 0
		for _, t := range []syscall.Timeval{self.Utime, self.Stime, children.Utime, children.Stime} {
			m.ours += time.Duration(t.Nano()).Seconds()
		}
	}
	return m
}

// since returns the time since m was read, in seconds, and the cores that other programs used on
// average, after all of ours have ended.
func (m machine) since() (seconds float64, others Figure) {
	now := readMachine()
	seconds = now.at.Sub(m.at).Seconds()
	cores := ((now.all - m.all) - (now.ours - m.ours)) / seconds
	if cores < 0 { // ticks are coarse
		cores = 0
	}
	return seconds, Figure(cores)
}

// busy reads the seconds that programs have run, from the first line of /proc/stat: user, nice, system
// and stolen time in ticks of 10 ms (proc_stat(5)). Interrupts belong to nobody and are left out.
func busy(stat string) (float64, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("unexpected line %q", line)
	}
	sum := 0.0
	for _, i := range []int{1, 2, 3, 8} {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum / 100, nil
}
