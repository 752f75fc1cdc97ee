package device

import (
	"bufio"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/estiba/estiba/runtime/residency"
)

// Processor is what the machine calls its processor, with family and model where it says
// them, or the architecture where it says nothing: "AMD EPYC, family 25, model 17". host is the
// root folder of the machine; nil means the real one.
func Processor(host fs.FS) string {
	if host == nil {
		host = os.DirFS("/")
	}
	f, err := host.Open("proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	said := map[string]string{} // of the first processor
	lines := bufio.NewScanner(f)
	for lines.Scan() && lines.Text() != "" {
		// "model name	: AMD EPYC"
		name, value, _ := strings.Cut(lines.Text(), ":")
		said[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	name := cmp.Or(said["model name"], runtime.GOARCH)
	if said["cpu family"] != "" && said["model"] != "" {
		name += ", family " + said["cpu family"] + ", model " + said["model"]
	}
	return name
}

// Memory is how much the machine has, and how much of it can be had without swapping, in
// bytes; limit is what this process's control group may have of it, 0 if that is all.
func Memory(host fs.FS) (total, available, limit int64, err error) {
	if host == nil {
		host = os.DirFS("/")
	}
	if total, err = meminfo(host, "MemTotal"); err != nil {
		return 0, 0, 0, err
	}
	if available, err = meminfo(host, "MemAvailable"); err != nil {
		return 0, 0, 0, err
	}
	limit, _, _ = cgroupLimit(host)
	return total, available, limit, nil
}

// Left is memory that a program may still claim. The zero value knows of no bound.
type Left struct {
	Bytes int64
	Bound string // what ends there, for people: "its control group may have 512 MiB"
}

// Free is what a process that takes a device for itself, as a command does, may claim: what the
// smallest limit of its control groups leaves beside its own overhead and what others in the group
// hold, or less where the machine has less available. host is the root folder of the machine; nil
// means the real one.
func Free(host fs.FS) Left { return free(host, false) }

// Rest is Free for a process that has been at work: what it holds by now, of tokenizers for one, may be more than
// its overhead.
func Rest(host fs.FS) Left { return free(host, true) }

func free(host fs.FS, worked bool) Left {
	if host == nil {
		host = os.DirFS("/")
	}
	var left Left
	if available, err := meminfo(host, "MemAvailable"); err == nil { // beside what this process holds
		left = Left{max(Room(available), 1), fmt.Sprintf("this machine has %s available", residency.Bytes(available))}
	}
	limit, group, limited := cgroupLimit(host)
	if !limited {
		return left
	}
	others, own := strangers(host, group), int64(0)
	overhead := limit - Room(limit)
	if worked && held(host) > overhead {
		debug.FreeOSMemory() // what was in use only while files were read can be had again
		own = held(host)
	}
	if room := max(limit-max(overhead, own)-others, 1); left.Bytes == 0 || room < left.Bytes {
		left = Left{room, fmt.Sprintf("its control group may have %s", residency.Bytes(limit))}
		if others > 0 {
			left.Bound += fmt.Sprintf(", of which other processes hold %s", residency.Bytes(others))
		}
		if own > overhead {
			left.Bound += fmt.Sprintf(", of which this process holds %s", residency.Bytes(own))
		}
	}
	return left
}

// held is what this process has in memory that no file backs; 0 where nobody can tell.
func held(host fs.FS) int64 {
	n, err := kernelFigure(host, "proc/self/status", "RssAnon")
	if err != nil {
		return 0
	}
	return n
}

// Most is the most that CPU would claim, whatever Options.Memory asks for, and the limit of the control
// group that ends it there; limit 0: it is the machine that has no more. Zeros where nobody can tell.
func Most(host fs.FS) (bytes, limit int64) {
	ask, _, limit, err := Memory(host)
	if err != nil {
		return 0, 0
	}
	if limit >= ask {
		limit = 0
	}
	if limit > 0 {
		ask = limit
	}
	d, err := CPU(Options{Memory: ask, Host: host})
	if err != nil {
		return 0, 0
	}
	return d.Capacity, limit
}
