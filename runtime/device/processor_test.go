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
