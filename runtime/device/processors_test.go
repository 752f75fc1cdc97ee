package device_test

import (
	"runtime"
	"testing"
	"testing/fstest"

	"github.com/estiba/estiba/runtime/device"
)

func TestProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	two := "0::/kubepods/pod1/c\n"
	one := "5:cpu,cpuacct:/pod\n4:memory:/pod\n"
	for name, c := range map[string]struct {
		group string
		files map[string]string
		want  int
	}{
		"no control groups":        {"", nil, 4},
		"no quota":                 {two, map[string]string{"sys/fs/cgroup/kubepods/pod1/c/cpu.max": "max 100000\n"}, 4},
		"one":                      {two, map[string]string{"sys/fs/cgroup/kubepods/pod1/c/cpu.max": "100000 100000\n"}, 1},
		"of the group above":       {two, map[string]string{"sys/fs/cgroup/kubepods/cpu.max": "200000 100000\n", "sys/fs/cgroup/kubepods/pod1/c/cpu.max": "300000 100000"}, 2},
		"in a container":           {two, map[string]string{"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3},
		"a half is rounded up":     {two, map[string]string{"sys/fs/cgroup/cpu.max": "75000 50000\n"}, 2},
		"a quarter is rounded off": {two, map[string]string{"sys/fs/cgroup/cpu.max": "225000 100000\n"}, 2},
		"a little":                 {two, map[string]string{"sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1},
		"more than there are":      {two, map[string]string{"sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 4},
		"broken":                   {two, map[string]string{"sys/fs/cgroup/cpu.max": "many\n"}, 4},
		"version 1":                {one, map[string]string{"sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "150000\n", "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n"}, 2},
		"version 1, no quota":      {one, map[string]string{"sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n"}, 4},
		"version 1, above":         {one, map[string]string{"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 1},
	} {
		host := fstest.MapFS{"proc/self/cgroup": {Data: []byte(c.group)}}
		for file, text := range c.files {
			host[file] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := device.Processors(host); got != c.want {
			t.Errorf("%s: %d processors, want %d", name, got, c.want)
		}
	}
	quota, limited := device.Quota(fstest.MapFS{"proc/self/cgroup": {Data: []byte(two)}, "sys/fs/cgroup/cpu.max": {Data: []byte("150000 100000\n")}})
	if _, none := device.Quota(fstest.MapFS{}); quota != 1.5 || !limited || none {
		t.Errorf("a quota of %v (%v), and without one %v", quota, limited, none)
	}
}
