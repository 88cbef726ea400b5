// Package procstat reads CPU time and memory of a process and all of its descendants from Linux's
// /proc (nginx and Node, for example, run workers below the first process).
package procstat

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of utime and stime in /proc/PID/stat: USER_HZ is 100 on Linux (proc_pid_stat(5)).
const clockTick = 10 * time.Millisecond

// Usage is a reading summed over a process tree. Pages that processes share count once for each of them.
type Usage struct {
	CPU     time.Duration // user + system, threads that ended included, processes that ended not
	RSS     int64         // bytes resident (VmRSS)
	Anon    int64         // bytes resident without file and shared pages (RssAnon)
	Threads int
	Procs   int
}

// Tree reads the usage of pid and everything below it. A process that ends during the reading is
// left out; that pid does not exist is an error (os.ErrNotExist).
func Tree(pid int) (Usage, error) {
	var sum Usage
	all, err := descendants(pid)
	if err != nil {
		return sum, err
	}
	for _, p := range all {
		u, err := one(p)
		if errors.Is(err, os.ErrNotExist) && p != pid {
			continue
		}
		if err != nil {
			return sum, err
		}
		sum.CPU += u.CPU
		sum.RSS += u.RSS
		sum.Anon += u.Anon
		sum.Threads += u.Threads
		sum.Procs++
	}
	return sum, nil
}

// descendants lists root and the processes below it.
func descendants(root int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil {
			children[s.parent] = append(children[s.parent], pid)
		}
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// stat is what is used of /proc/PID/stat.
type stat struct {
	parent  int
	cpu     time.Duration // whole ticks
	threads int
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	s, err := parseStat(string(b))
	if err != nil {
		return stat{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return s, nil
}

// parseStat reads a stat line. The command name may hold spaces and parentheses, so fields are
// counted from the last parenthesis: the state is field 0, the parent 1, utime 11, stime 12, threads 17.
func parseStat(line string) (stat, error) {
	f := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(f) < 18 {
		return stat{}, fmt.Errorf("%d fields", len(f))
	}
	var n [4]int64
	for i, at := range [4]int{1, 11, 12, 17} {
		v, err := strconv.ParseInt(f[at], 10, 64)
		if err != nil {
			return stat{}, err
		}
		n[i] = v
	}
	return stat{parent: int(n[0]), cpu: time.Duration(n[1]+n[2]) * clockTick, threads: int(n[3])}, nil
}

func one(pid int) (Usage, error) {
	s, err := readStat(pid)
	if err != nil {
		return Usage{}, err
	}
	u := Usage{CPU: s.cpu, Threads: s.threads}
	// Whole ticks are too coarse for a lightly loaded proxy: 20 ms of error on 400.
	if fine, ok := cpuClock(pid); ok {
		u.CPU = fine
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(b)) {
		switch name, value, _ := strings.Cut(line, ":"); name {
		case "VmRSS":
			u.RSS, err = kib(value)
		case "RssAnon":
			u.Anon, err = kib(value)
		}
		if err != nil {
			return u, fmt.Errorf("/proc/%d/status: %w", pid, err)
		}
	}
	return u, nil
}

// kib reads "  1234 kB" as bytes.
func kib(s string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(s), "kB")), 10, 64)
	return n << 10, err
}
