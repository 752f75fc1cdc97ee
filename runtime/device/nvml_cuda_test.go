//go:build cuda && cgo

package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// libraries is the folder of the emulated ones; see hack/cuda/nvml-test.sh.
func libraries(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("ESTIBA_NVML_LIBRARIES")
	if folder == "" {
		t.Skip("there is no emulated NVML: run hack/cuda/nvml-test.sh")
	}
	return folder
}

// machine is what the emulated NVML answers from.
type machine struct {
	t    *testing.T
	path string
}

func newMachine(t *testing.T, text string) machine {
	t.Helper()
	libraries(t)
	m := machine{t, filepath.Join(t.TempDir(), "machine")}
	m.is(text)
	t.Setenv("ESTIBA_EMULATED_NVML", m.path)
	return m
}

func (m machine) is(text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path+".new", []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(m.path+".new", m.path); err != nil {
		m.t.Fatal(err)
	}
}

func open(t *testing.T, held Held) Monitor {
	t.Helper()
	m, err := NVML(held)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// again runs one test in a process with another library.
func again(t *testing.T, library, test string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+library, "ESTIBA_NVML_LIBRARY="+library)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Errorf("%v\n%s", err, out)
	}
}

const one = "gpu uuid=GPU-1 name=NVIDIA_A100-SXM4-80GB total=85899345920 reserved=629145600 free=52428800000 util=40 power=250500 limit=400000 energy=123456789 temp=61 throttle=0x1 ecc=0 events=8\n"

func TestNVML(t *testing.T) {
	machine := newMachine(t, one+fmt.Sprintf("process gpu=0 pid=4711 bytes=%d\nprocess gpu=0 pid=self bytes=%d\nprocess gpu=0 pid=4712 bytes=0xFFFFFFFFFFFFFFFF\n", 30<<30, 600<<20))
	m := open(t, func(string) int64 { return 500 << 20 })
	units, err := m.Devices()
	if err != nil {
		t.Fatal(err)
	}
	const total, free = 85899345920 - 629145600, 52428800000
	want := []Unit{{UUID: "GPU-1", Name: "NVIDIA A100-SXM4-80GB", PCI: "00000000:3B:00.0", Total: total}}
	if d := cmp.Diff(want, units); d != "" {
		t.Error(d)
	}
	r, err := m.Read("GPU-1")
	if err != nil {
		t.Fatal(err)
	}
	if time.Since(r.Time) > time.Minute {
		t.Error(r.Time)
	}
	r.Time = time.Time{}
	wantReading := Reading{
		Total: total, Free: free, Ours: 600 << 20, Others: total - free - 600<<20, OursFrom: OursListed,
		Utilization: Known(0.4), PowerWatts: Known(250.5), PowerLimitWatts: Known(400), EnergyJoules: Known(123456.789), TemperatureCelsius: Known(61), ECCUncorrected: Known(0),
		Processes: []Process{{PID: 4711, Bytes: 30 << 30}, {PID: os.Getpid(), Bytes: 600 << 20, Ours: true}},
	}
	if d := cmp.Diff(wantReading, r); d != "" {
		t.Error(d)
	}

	// Another process's number is this one's, in its own container: it has less than is held.
	m.(*nvmlMonitor).initialNamespace = false
	machine.is(one + "process gpu=0 pid=self bytes=1000\n")
	if r, err := m.Read("GPU-1"); err != nil || r.Ours != 500<<20 || r.OursFrom != OursHeld || r.Processes[0].Ours {
		t.Error(r, err)
	}

	for reasons, names := range map[string][]string{
		"0x0": nil, "0x3": nil, "0x20": {ThrottleHeat}, "0x48": {ThrottleHeatHard}, "0x88": {ThrottlePowerBrake}, "0x8": {ThrottleHardware}, "0x24": {ThrottleHeat, ThrottlePower},
	} {
		machine.is(strings.Replace(one, "throttle=0x1", "throttle="+reasons, 1))
		if r, err := m.Read("GPU-1"); err != nil || cmp.Diff(names, r.Throttled) != "" {
			t.Errorf("%s: %q, %v", reasons, r.Throttled, err)
		}
	}

	machine.is(strings.Replace(one, "ecc=0", "ecc=3 pending=1 failed=1", 1))
	if r, err := m.Read("GPU-1"); err != nil || r.ECCUncorrected != Known(3) || !r.RemapPending || !r.RemapFailed {
		t.Error(r, err)
	}

	// What may not be asked is absent; memory must be there.
	refused := ""
	for _, f := range []string{
		"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTemperature",
		"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetComputeRunningProcesses_v3",
	} {
		refused += "fail function=" + f + " return=4\n"
	}
	machine.is(one + refused)
	r, err = m.Read("GPU-1")
	r.Time = time.Time{}
	if d := cmp.Diff(Reading{Total: total, Free: free, Ours: 500 << 20, Others: total - free - 500<<20, OursFrom: OursHeld}, r); d != "" || err != nil {
		t.Error(d, err)
	}
	machine.is(one + "fail function=nvmlDeviceGetMemoryInfo_v2 return=4\nfail function=nvmlDeviceGetMemoryInfo return=4\n")
	if _, err := m.Read("GPU-1"); err == nil || errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "Insufficient Permissions") {
		t.Error(err)
	}
	machine.is(one + "fail function=nvmlDeviceGetPowerUsage return=15\n") // lost in between
	if _, err := m.Read("GPU-1"); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	machine.is(strings.Replace(one, "util=40", "util=40 lost=1", 1))
	if _, err := m.Read("GPU-1"); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if _, err := m.Read("GPU-2"); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "GPU-2") {
		t.Error(err)
	}
	if units, err := m.Devices(); err != nil || len(units) != 0 {
		t.Error(units, err)
	}
	machine.is("gpu uuid=GPU-0 total=1 hidden=1\n" + one)
	if units, err := m.Devices(); err != nil || len(units) != 1 || units[0].UUID != "GPU-1" || units[0].Index != 1 {
		t.Error(units, err)
	}
}

// TestNVMLUnlisted: a listing that fails once says nothing of a device, and one that is lost says so though it is listed no more.
func TestNVMLUnlisted(t *testing.T) {
	machine := newMachine(t, one)
	m := open(t, nil)
	if _, err := m.Devices(); err != nil {
		t.Fatal(err)
	}
	const unread = "fail function=nvmlDeviceGetMemoryInfo_v2 return=999\nfail function=nvmlDeviceGetMemoryInfo return=999\n"
	machine.is(strings.Replace(one, "util=40", "util=40 hidden=1", 1) + unread)
	for range 2 {
		if _, err := m.Read("GPU-1"); !errors.Is(err, ErrUnlisted) {
			t.Error(err)
		}
	}
	machine.is(one)
	if _, err := m.Read("GPU-1"); err != nil {
		t.Error(err)
	}
	machine.is(strings.Replace(one, "util=40", "util=40 lost=1", 1))
	for range 2 {
		if units, err := m.Devices(); err != nil || len(units) != 0 {
			t.Error(units, err)
		}
		if _, err := m.Read("GPU-1"); !errors.Is(err, ErrGone) || errors.Is(err, ErrUnlisted) {
			t.Error(err)
		}
	}
}

func TestNVMLInstances(t *testing.T) {
	split := strings.Replace(one, "util=40", "mig=1", 1)
	machine := newMachine(t, split+`mig gpu=0 slot=0 uuid=MIG-a name=NVIDIA_A100-SXM4-80GB_MIG_3g.40gb gi=1 ci=0 total=42949672960 reserved=0 free=42949672960
mig gpu=0 slot=2 uuid=MIG-b gi=2 ci=0 total=21474836480 reserved=0 free=10737418240
process gpu=0 mig=0 pid=4711 bytes=1000
`)
	m := open(t, nil)
	units, err := m.Devices()
	if err != nil {
		t.Fatal(err)
	}
	want := []Unit{
		{UUID: "GPU-1", Name: "NVIDIA A100-SXM4-80GB", PCI: "00000000:3B:00.0", Split: true, Total: 85899345920 - 629145600},
		{UUID: "MIG-a", Name: "NVIDIA A100-SXM4-80GB MIG 3g.40gb", PCI: "00000000:3B:00.0", MIG: true, Parent: "GPU-1", Total: 40 << 30},
		{UUID: "MIG-b", Name: "NVIDIA A100-SXM4-80GB MIG", PCI: "00000000:3B:00.0", MIG: true, Parent: "GPU-1", Total: 20 << 30},
	}
	if d := cmp.Diff(want, units); d != "" {
		t.Error(d)
	}
	r, err := m.Read("MIG-b")
	r.Time = time.Time{}
	if d := cmp.Diff(Reading{Total: 20 << 30, Free: 10 << 30, Others: 10 << 30, OursFrom: OursHeld, TemperatureCelsius: Known(61), ECCUncorrected: Known(0)}, r); d != "" || err != nil {
		t.Error(d, err)
	}
	if claimed, err := Claim(m, "cuda", 0, Options{}); err != nil || len(claimed) != 2 || claimed[1].UUID != "MIG-b" || claimed[1].Capacity != 10<<30 {
		t.Error(claimed, err)
	}

	machine.is(split + "mig gpu=0 slot=2 uuid=MIG-b gi=2 ci=0 total=21474836480 free=21474836480\n") // the other has been destroyed
	if r, err := m.Read("MIG-a"); !errors.Is(err, ErrGone) {
		t.Error(r, err)
	}
	machine.is(split + "mig gpu=0 slot=0 uuid=MIG-a gi=1 ci=0 total=1000 free=1000\nmig gpu=0 slot=2 uuid=MIG-b gi=2 ci=0 total=21474836480\n") // and made again
	if r, err := m.Read("MIG-a"); err != nil || r.Free != 1000 {
		t.Error(r, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	events := m.Events(ctx)
	machine.is(split + "mig gpu=0 slot=2 uuid=MIG-b gi=2 ci=0 total=21474836480\nevent gpu=0 data=94 gi=2\nevent gpu=0 data=31 gi=9 ci=0\nevent gpu=0 data=48\n")
	for _, want := range []Event{NewEvent("MIG-b", time.Time{}, 94), NewEvent("GPU-1", time.Time{}, 31), NewEvent("GPU-1", time.Time{}, 48)} {
		got := <-events
		got.Time = time.Time{}
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	cancel()
	if e, open := <-events; open {
		t.Error(e)
	}
}

func TestNVMLEvents(t *testing.T) {
	two := one + strings.Replace(strings.Replace(one, "GPU-1", "GPU-2", 1), "events=8", "events=0xA", 1)
	machine := newMachine(t, two+"event gpu=0 data=13\n") // which nobody hears any more
	m := open(t, nil)
	events := m.Events(t.Context())
	machine.is(two + "event gpu=0 data=13\nevent gpu=0 type=2\nevent gpu=1 type=2\n" + "event gpu=1 data=79\n")
	for _, want := range []Event{
		{UUID: "GPU-2", Message: "two bits of memory flipped at once (uncorrectable ECC error); reset the device when nothing runs on it"},
		{UUID: "GPU-2", XID: 79, Fatal: true, Message: "XID 79: the device has fallen off the bus; power the machine off and on; if the error comes back, replace the device"},
	} {
		got := <-events
		got.Time = time.Time{}
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if err := m.Close(); err != nil { // ends it, too
		t.Error(err)
	}
	if e, open := <-events; open {
		t.Error(e)
	}
	if _, err := m.Read("GPU-1"); err == nil {
		t.Error("read after Close")
	}
	if _, err := m.Devices(); err == nil {
		t.Error("devices after Close")
	}
}

// TestNVMLOldDriver: a call of what the library lacks would end the process.
func TestNVMLOldDriver(t *testing.T) {
	library := filepath.Join(libraries(t), "old")
	if os.Getenv("ESTIBA_NVML_LIBRARY") != library {
		again(t, library, t.Name())
		return
	}
	machine := newMachine(t, one+"process gpu=0 pid=self bytes=1000000\n")
	m := open(t, nil)
	units, err := m.Devices()
	if err != nil || len(units) != 1 || units[0].PCI == "" {
		t.Error(units, err)
	}
	r, err := m.Read("GPU-1")
	if err != nil {
		t.Fatal(err)
	}
	if r.Total != 85899345920 || r.Ours != 1000000 || r.PowerWatts != Known(250.5) || r.EnergyJoules.Known || r.PowerLimitWatts.Known || r.ECCUncorrected.Known {
		t.Errorf("%+v", r)
	}
	events := m.Events(t.Context())
	machine.is(one + "event gpu=0 data=79\n")
	if e := <-events; e.XID != 79 {
		t.Errorf("%+v", e)
	}
	machine.is(one + "fail function=nvmlDeviceGetMemoryInfo return=4\n")
	if _, err := m.Read("GPU-1"); err == nil || !strings.Contains(err.Error(), "NVML's error 4") {
		t.Error(err)
	}
}

func TestNVMLWithoutDriver(t *testing.T) {
	libraries(t)
	if os.Getenv("ESTIBA_NVML_LIBRARY") != "/nonexistent" {
		again(t, "/nonexistent", t.Name())
		return
	}
	for range 2 {
		if _, err := NVML(nil); !errors.Is(err, ErrNoNVML) || !strings.Contains(err.Error(), "NVML cannot be used: libnvidia-ml.so.1") || !strings.Contains(err.Error(), "NVIDIA_DRIVER_CAPABILITIES") {
			t.Fatal(err)
		}
	}
}

// TestNVMLDamaged: a library that would end this process is not loaded.
func TestNVMLDamaged(t *testing.T) {
	const folder = "ESTIBA_NVML_DAMAGED"
	if os.Getenv(folder) != "" {
		if _, err := NVML(nil); !errors.Is(err, ErrNoNVML) || !strings.Contains(err.Error(), filepath.Join(os.Getenv(folder), "libnvidia-ml.so.1")) || !strings.Contains(err.Error(), "SIGBUS") || strings.Contains(err.Error(), "NVIDIA_DRIVER_CAPABILITIES") {
			t.Fatal(err)
		}
		return
	}
	whole, err := os.ReadFile(filepath.Join(libraries(t), "new", "libnvidia-ml.so.1"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "libnvidia-ml.so.1"), whole[:8<<10], 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(folder, damaged)
	again(t, damaged, t.Name())
}

func TestNVMLInitFails(t *testing.T) {
	for code, says := range map[int]string{9: "kernel module", 18: "another version", 4: "may not", 17: "control group", 999: "999"} {
		newMachine(t, fmt.Sprintf("init return=%d\n", code))
		if _, err := NVML(nil); !errors.Is(err, ErrNoNVML) || !strings.Contains(err.Error(), says) {
			t.Errorf("%d: %v", code, err)
		}
	}
	newMachine(t, one)
	open(t, nil) // it is there after all
}
