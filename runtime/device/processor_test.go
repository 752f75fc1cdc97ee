package device

import (
	"runtime"
	"testing"
	"testing/fstest"
)

func TestProcessor(t *testing.T) {
	for want, cpuinfo := range map[string]string{
		"AMD EPYC, family 25, model 17": "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: another\n",
		"x":                             "model name : x\n",
		runtime.GOARCH:                  "processor\t: 0\nCPU implementer\t: 0x41\n",
	} {
		host := fstest.MapFS{"proc/cpuinfo": {Data: []byte(cpuinfo)}}
		if got := Processor(host); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := Processor(fstest.MapFS{}); got != runtime.GOARCH {
		t.Errorf("%q without /proc", got)
	}
}

func TestMemory(t *testing.T) {
	host := fstest.MapFS{
		"proc/meminfo":             {Data: []byte("MemTotal: 4 kB\nMemAvailable: 2 kB\n")},
		"proc/self/cgroup":         {Data: []byte("0::/\n")},
		"sys/fs/cgroup/memory.max": {Data: []byte("3000\n")},
	}
	if total, available, limit, err := Memory(host); total != 4096 || available != 2048 || limit != 3000 || err != nil {
		t.Error(total, available, limit, err)
	}
	if _, _, _, err := Memory(fstest.MapFS{}); err == nil {
		t.Error("memory of nothing")
	}
}

func TestFree(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	meminfo := file("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
	group := func(limit, held string) fstest.MapFS {
		return fstest.MapFS{
			"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/g\n"), "proc/self/status": file("RssAnon: 1024 kB\n"),
			"sys/fs/cgroup/g/memory.max": file(limit), "sys/fs/cgroup/g/memory.stat": file("anon " + held + "\n"),
		}
	}
	for name, c := range map[string]struct {
		host  fstest.MapFS
		bytes int64
		bound string
	}{
		"nothing is known":             {fstest.MapFS{}, 0, ""},
		"no control group":             {fstest.MapFS{"proc/meminfo": meminfo}, 4<<30 - 96<<20, "this machine has 4 GiB available"},
		"no limit":                     {group("max", "0"), 4<<30 - 96<<20, "this machine has 4 GiB available"},
		"a small group":                {group("536870912", "1048576"), 416 << 20, "its control group may have 512 MiB"},
		"neighbours in it":             {group("536870912", "105906176"), 316 << 20, "its control group may have 512 MiB, of which other processes hold 100 MiB"},
		"they hold all":                {group("1048576", "105906176"), 1, "its control group may have 1 MiB, of which other processes hold 100 MiB"},
		"more than the machine has":    {group("17179869184", "0"), 4<<30 - 96<<20, "this machine has 4 GiB available"},
		"a group, and no word of more": {fstest.MapFS{"proc/self/cgroup": file("0::/g\n"), "sys/fs/cgroup/g/memory.max": file("536870912")}, 416 << 20, "its control group may have 512 MiB"},
	} {
		if got := Free(c.host); got != (Left{c.bytes, c.bound}) {
			t.Errorf("%s: %+v, want %d, %q", name, got, c.bytes, c.bound)
		}
	}
}

// TestRest: what a process holds beyond its overhead is not left, and is known to be missing where the machine says what is available.
func TestRest(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for name, c := range map[string]struct {
		limit, own string
		bytes      int64
		bound      string
	}{
		"within the overhead": {"67108864", "16384", 48 << 20, "its control group may have 64 MiB"},
		"beyond it":           {"67108864", "40960", 24 << 20, "its control group may have 64 MiB, of which this process holds 40 MiB"},
		"everything":          {"67108864", "65536", 1, "its control group may have 64 MiB, of which this process holds 64 MiB"},
		"no limit":            {"max", "65536", 48 << 20, "this machine has 64 MiB available"},
	} {
		host := fstest.MapFS{
			"proc/meminfo": file("MemTotal: 8388608 kB\nMemAvailable: 65536 kB\n"), "proc/self/cgroup": file("0::/g\n"),
			"proc/self/status": file("RssAnon: " + c.own + " kB\n"), "sys/fs/cgroup/g/memory.max": file(c.limit), "sys/fs/cgroup/g/memory.stat": file("anon 0\n"),
		}
		if c.limit != "max" {
			host["proc/meminfo"] = file("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
		}
		if got := Rest(host); got != (Left{c.bytes, c.bound}) {
			t.Errorf("%s: %+v, want %d, %q", name, got, c.bytes, c.bound)
		}
	}
}

func TestMost(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	meminfo := file("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
	for name, c := range map[string]struct {
		limit        string
		most, bounds int64
	}{
		"the machine":            {"max", 4 << 30, 0},
		"the group":              {"536870912", 416 << 20, 512 << 20},
		"a group without effect": {"17179869184", 8 << 30, 0},
	} {
		host := fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file(c.limit)}
		if most, limit := Most(host); most != c.most || limit != c.bounds {
			t.Errorf("%s: %d bounded by %d, want %d by %d", name, most, limit, c.most, c.bounds)
		}
	}
	if most, limit := Most(fstest.MapFS{}); most != 0 || limit != 0 {
		t.Errorf("nowhere: %d, %d", most, limit)
	}
}
