package bench

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of /proc/stat, in seconds. It is 1/100 on every platform that Go runs on.
const tick = 0.01

// watch says what other processes did since it was started.
type watch struct {
	start time.Time
	all   float64 // seconds that all processors had been busy
	own   float64 // of those this process
	known bool
}

func startWatch() watch {
	w := watch{start: time.Now()}
	w.all, w.own, w.known = Busy()
	return w
}

// others is how many processors were busy for other processes, as a mean; nil if it is not known.
func (w watch) others() *float64 {
	all, own, known := Busy()
	if !known || !w.known {
		return nil
	}
	n := max(0, (all-w.all-(own-w.own))/time.Since(w.start).Seconds())
	return &n
}

// Busy reads how many seconds all processors, and this process on them, have been at work
// since they started. What a hypervisor took counts as others' work.
func Busy() (all, own float64, known bool) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, false
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	// "cpu user nice system idle iowait irq softirq steal …"
	fields := strings.Fields(string(line))
	if len(fields) < 9 {
		return 0, 0, false
	}
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, 0, false
		}
		if i != 3 && i != 4 {
			all += float64(n) * tick
		}
	}
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0, 0, false
	}
	return all, seconds(usage.Utime) + seconds(usage.Stime), true
}

func seconds(t unix.Timeval) float64 { return time.Duration(t.Nano()).Seconds() }

// resident is how much memory this process has, in bytes: all of it, what no file
// backs, and the most there was. Zeros where the system does not say.
func resident() (all, anonymous, peak int64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0, 0
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "VmRSS":
			all = kib << 10
		case "RssAnon":
			anonymous = kib << 10
		case "VmHWM":
			peak = kib << 10
		}
	}
	return all, anonymous, peak
}

// forgetPeak makes the peak what the process has now. Where it is not allowed, the peak
// is that of the whole life.
func forgetPeak() { _ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }
