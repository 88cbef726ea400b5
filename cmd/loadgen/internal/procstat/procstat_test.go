//go:build linux

package procstat

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary stand in for a child process that lives until its input ends.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "child" {
		_, _ = os.Stdout.WriteString("up\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

// worked is how much CPU time this process has had since the test binary began, by the kernel's other account of it.
func worked(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestOwnCPU(t *testing.T) {
	had := worked(t)
	before, err := Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	start, x := time.Now(), uint64(1)
	for worked(t)-had < 50*time.Millisecond || time.Since(start) < 100*time.Millisecond {
		for range 100_000 {
			x = x*6364136223846793005 + 1
		}
	}
	took := time.Since(start)
	after, err := Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Other threads of the test may work too, and other programs may take the processor away.
	if used := after.CPU - before.CPU; x == 0 || used < 20*time.Millisecond || used > 4*took {
		t.Errorf("%v of CPU for %v of work in one goroutine", used, took)
	}
	if coarse, err := readStat(os.Getpid()); err != nil || (coarse.cpu-after.CPU).Abs() > 200*time.Millisecond {
		t.Errorf("ticks say %v, the clock %v (%v)", coarse.cpu, after.CPU, err)
	}
	if after.Threads < 1 || after.Procs < 1 {
		t.Errorf("%d threads in %d processes", after.Threads, after.Procs)
	}
}

func TestOwnMemory(t *testing.T) {
	const size = 64 << 20
	before, err := Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Mapped by hand: the race detector doubles what the Go heap takes.
	held, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(held) }()
	for i := 0; i < size; i += 4096 {
		held[i] = 1
	}
	after, err := Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// The kernel's own counts lag by some pages per thread.
	for name, grown := range map[string]int64{"RSS": after.RSS - before.RSS, "anon": after.Anon - before.Anon} {
		if grown < size*9/10 || grown > size*5/4 {
			t.Errorf("%s grew by %d for %d touched bytes (%d)", name, grown, size, held[0])
		}
	}
}

func TestTreeCountsChildren(t *testing.T) {
	alone, err := Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "child")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	both, err := Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	child, err := Tree(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if both.Procs != alone.Procs+1 || child.Procs != 1 || child.RSS < 1<<20 || both.RSS < child.RSS {
		t.Errorf("alone %+v, with a child %+v, the child %+v", alone, both, child)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := Tree(cmd.Process.Pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an ended process gave %v", err)
	}
}

func TestParseStat(t *testing.T) {
	const line = "123 (a) b (c) S 45 123 123 0 -1 4194304 10 0 0 0 7 8 0 0 20 0 3 0 99 1 2 3\n"
	got, err := parseStat(line)
	if want := (stat{parent: 45, cpu: 150 * time.Millisecond, threads: 3}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "123 (a) S 45", "123 (a) S x 1 1 0 -1 0 0 0 0 0 7 8 0 0 20 0 3 0 99 1"} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("%q gave %+v", bad, got)
		}
	}
}
