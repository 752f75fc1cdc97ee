package device

import (
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
)

// Processors is how many threads can compute at once: GOMAXPROCS, or the time that the control
// groups of this process give it per unit of time where that is less, rounded, at least 1. With
// more threads than that, each would stand still for a part of every period in which the time is
// given, and the others would wait for it; with less, time would be left. host is the root folder
// of the machine; nil means the real one.
func Processors(host fs.FS) int {
	n := runtime.GOMAXPROCS(0)
	if quota, limited := Quota(host); limited {
		n = min(n, max(1, int(math.Round(quota))))
	}
	return n
}

// Quota is the smallest CPU quota of this process's control groups, version 2 or 1, in
// processors (1.5 is three halves of one's time); false if there is none. host is as for Processors.
func Quota(host fs.FS) (least float64, found bool) {
	if host == nil {
		host = os.DirFS("/")
	}
	eachCgroup(host, "cpu", func(version int, dir string) {
		quota, period := "", ""
		if version == 2 { // "150000 100000" or "max 100000"
			b, _ := fs.ReadFile(host, path.Join(dir, "cpu.max")) // absent: no quota
			quota, period, _ = strings.Cut(strings.TrimSpace(string(b)), " ")
		} else {
			q, _ := fs.ReadFile(host, path.Join(dir, "cpu.cfs_quota_us"))
			p, _ := fs.ReadFile(host, path.Join(dir, "cpu.cfs_period_us"))
			quota, period = strings.TrimSpace(string(q)), strings.TrimSpace(string(p))
		}
		time, err := strconv.ParseFloat(quota, 64) // "max" and version 1's -1 are none
		every, err2 := strconv.ParseFloat(period, 64)
		if err == nil && err2 == nil && time > 0 && every > 0 && (!found || time/every < least) {
			least, found = time/every, true
		}
	})
	return least, found
}

// eachCgroup calls do for the folders of this process's control groups that limit a resource, and
// of those above them, whether or not they are there: inside a container a path may be the host's.
func eachCgroup(host fs.FS, resource string, do func(version int, dir string)) {
	groups, err := fs.ReadFile(host, "proc/self/cgroup")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(groups)) {
		// "0::/kubepods/pod1" or "4:cpu,cpuacct:/kubepods/pod1"
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		version, root := 0, ""
		switch {
		case part[0] == "0" && part[1] == "":
			version, root = 2, "sys/fs/cgroup"
		case strings.Contains(","+part[1]+",", ","+resource+","):
			version, root = 1, "sys/fs/cgroup/"+resource
		default:
			continue
		}
		for dir := path.Clean("/" + part[2]); ; dir = path.Dir(dir) {
			do(version, path.Join(root, dir))
			if dir == "/" {
				break
			}
		}
	}
}
