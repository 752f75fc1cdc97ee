package device

import (
	"bufio"
	"cmp"
	"io/fs"
	"os"
	"runtime"
	"strings"
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
