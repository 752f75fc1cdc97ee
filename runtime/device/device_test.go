package device

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestCPU(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	meminfo := file("MemTotal:       24105000 kB\nMemAvailable:   10485760 kB\n") // 10 GiB
	cases := map[string]struct {
		host     fstest.MapFS
		o        Options
		capacity int64
		extent   int64
		from     string
	}{
		"no control group": {
			host: fstest.MapFS{"proc/meminfo": meminfo}, capacity: 8 << 30, extent: 2 << 20, from: "80 %"},
		"headroom": {
			host: fstest.MapFS{"proc/meminfo": meminfo}, o: Options{Memory: 1000 << 20, Headroom: 10}, capacity: 900 << 20, extent: 64 << 10, from: "as asked"},
		"version 2": {
			host: fstest.MapFS{
				"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/pods/one\n"),
				"sys/fs/cgroup/pods/one/memory.max": file("max\n"), "sys/fs/cgroup/pods/memory.max": file("1073741824\n"),
			}, capacity: 1<<30 - 96<<20, extent: 64 << 10, from: "control group"},
		"version 2, own namespace": {
			host: fstest.MapFS{
				"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("104857600\n"),
			}, capacity: 75 << 20, extent: 64 << 10, from: "control group"},
		"version 1, path of the host": {
			host: fstest.MapFS{
				"proc/meminfo": meminfo, "proc/self/cgroup": file("5:cpu,cpuacct:/x\n4:memory:/host/path\n"),
				"sys/fs/cgroup/memory/memory.limit_in_bytes": file("1073741824\n"),
			}, capacity: 1<<30 - 96<<20, extent: 64 << 10, from: "control group"},
		"version 1, no limit": {
			host: fstest.MapFS{
				"proc/meminfo": meminfo, "proc/self/cgroup": file("4:memory:/\n"),
				"sys/fs/cgroup/memory/memory.limit_in_bytes": file("9223372036854771712\n"),
			}, capacity: 8 << 30, extent: 2 << 20, from: "80 %"},
		"memory asked for is bounded by the control group": {
			host: fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("104857600\n")},
			o:    Options{Memory: 100 << 20}, capacity: 75 << 20, extent: 64 << 10, from: "control group"},
		"what is expected is bounded by the control group": {
			host: fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("104857600\n")},
			o:    Options{Expected: 80 << 30}, capacity: 75 << 20, extent: 64 << 10, from: "control group"},
		"what is expected is bounded by the machine": {
			host: fstest.MapFS{"proc/meminfo": meminfo}, o: Options{Expected: 80 << 30}, capacity: 8 << 30, extent: 2 << 20, from: "80 %"},
		"what is expected is there": {
			host: fstest.MapFS{"proc/meminfo": meminfo}, o: Options{Expected: 1 << 30}, capacity: 1 << 30, extent: 2 << 20, from: "as expected"},
		"strangers in the control group": {
			host: fstest.MapFS{
				"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/pods/one\n"), "sys/fs/cgroup/pods/memory.max": file("1073741824\n"),
				"sys/fs/cgroup/pods/memory.stat": file("anon 314572800\nfile 900000000\n"), "proc/self/status": file("Name:\tx\nRssAnon:\t  102400 kB\n"),
			}, capacity: 1<<30 - 96<<20 - 200<<20, extent: 64 << 10, from: "less overhead and 200 MiB that other processes hold"},
		"strangers on the machine": {
			host: fstest.MapFS{"proc/meminfo": meminfo}, o: Options{Memory: 12 << 30}, capacity: 10 << 30, extent: 2 << 20, from: "as asked for, less 2 GiB that other processes hold"},
		"a small claim": {
			host: fstest.MapFS{}, o: Options{Memory: 8 << 20, Headroom: 0}, capacity: 8 << 20, extent: 64 << 10, from: "as asked"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o := c.o
			o.Host = c.host
			d, err := CPU(o)
			if err != nil {
				t.Fatal(err)
			}
			if d.Capacity != c.capacity || d.Extent != c.extent || !strings.Contains(d.Description, c.from) {
				t.Errorf("got %+v; want capacity %d, extent %d, from %q", d, c.capacity, c.extent, c.from)
			}
		})
	}
	if _, err := CPU(Options{Host: fstest.MapFS{}}); err == nil || !strings.Contains(err.Error(), "--memory") {
		t.Errorf("a host that says nothing: %v", err)
	}
	for name, host := range map[string]fstest.MapFS{
		"machine has 23.0 GiB":                           {"proc/meminfo": meminfo},
		"control group of this process may have 100 MiB": {"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("104857600\n")},
	} {
		if _, err := CPU(Options{Memory: 1 << 60, Host: host}); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "asked for") {
			t.Errorf("an exbibyte: %v, want %q", err, name)
		}
	}
	if _, err := CPU(Options{Memory: 1000, Host: fstest.MapFS{}}); err == nil {
		t.Error("1000 bytes were enough")
	}
}
