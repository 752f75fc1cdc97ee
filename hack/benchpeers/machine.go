package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/estiba/estiba/internal/bench"
	"golang.org/x/sys/unix"
)

// tick is the unit of a process's times in /proc, in seconds.
const tick = 0.01

// watchOthers begins to look at what other processes do: neither a command that is started
// now, nor this process, nor the load.
func watchOthers(load func() float64) (func(*os.ProcessState) float64, error) {
	began := time.Now()
	all, own, known := bench.Busy()
	if !known {
		return nil, errors.New("/proc/stat does not say how busy this machine is")
	}
	if load == nil {
		load = func() float64 { return 0 }
	}
	loaded := load()
	return func(done *os.ProcessState) float64 {
		allNow, ownNow, known := bench.Busy()
		if !known {
			return 0
		}
		theirs := allNow - all - (ownNow - own) - (load() - loaded) - (done.UserTime() + done.SystemTime()).Seconds()
		return max(0, theirs/time.Since(began).Seconds())
	}, nil
}

// hog keeps one processor busy until it is killed.
func hog(processor string) {
	runtime.LockOSThread()
	n, err := strconv.Atoi(processor)
	if err != nil {
		os.Exit(2)
	}
	var set unix.CPUSet
	set.Set(n)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers: hog:", err)
		os.Exit(1)
	}
	for spins := 0; ; spins++ {
	}
}

// hogs are started on the first n processors. used is how many seconds they have had.
func hogs(n int) (used func() float64, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	var all []*exec.Cmd
	stop = func() {
		for _, c := range all {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
	for i := range n {
		c := exec.Command(self, "hog", strconv.Itoa(i))
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			stop()
			return nil, nil, err
		}
		all = append(all, c)
	}
	return func() float64 {
		sum := 0.0
		for _, c := range all {
			sum += timeOf(c.Process.Pid)
		}
		return sum
	}, stop, nil
}

// timeOf a process, in seconds of a processor.
func timeOf(pid int) float64 {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	// "pid (name) state …": utime and stime are the 14th and 15th.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) * tick
}

// quota makes a control group that has the time of one processor, below this process's own.
func quota() (group string, remove func(), err error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", nil, err
	}
	name := fmt.Sprintf("estiba-bench-%d", os.Getpid())
	for line := range strings.Lines(string(own)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		var above, file, value string
		switch {
		case part[0] == "0" && part[1] == "":
			above, file, value = filepath.Join("/sys/fs/cgroup", part[2]), "cpu.max", "100000 100000"
		case strings.Contains(","+part[1]+",", ",cpu,"):
			above, file, value = filepath.Join("/sys/fs/cgroup", part[1], part[2]), "cpu.cfs_quota_us", "100000"
		default:
			continue
		}
		group = filepath.Join(above, name)
		if err = os.Mkdir(group, 0o755); err != nil {
			continue
		}
		remove = func() { _ = os.Remove(group) } // it is empty: its processes have ended
		if file == "cpu.max" {
			_ = os.WriteFile(filepath.Join(above, "cgroup.subtree_control"), []byte("+cpu"), 0) // if not there, the next line says so
		} else {
			_ = os.WriteFile(filepath.Join(group, "cpu.cfs_period_us"), []byte("100000"), 0) // the default
		}
		if err = os.WriteFile(filepath.Join(group, file), []byte(value), 0); err == nil {
			return group, remove, nil
		}
		remove()
	}
	if err == nil {
		err = fmt.Errorf("/proc/self/cgroup names no group that gives time")
	}
	return "", nil, err
}
