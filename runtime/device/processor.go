package device

import (
	"bufio"
	"io/fs"
	"os"
	"runtime"
	"strings"
)

// Processor is what the machine calls its processor, or the architecture where it does
// not say. host is the root folder of the machine; nil means the real one.
func Processor(host fs.FS) string {
	if host == nil {
		host = os.DirFS("/")
	}
	f, err := host.Open("proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// "model name	: AMD EPYC 9R14"
		if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
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
