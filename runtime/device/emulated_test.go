package device

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func emulate(t *testing.T, text string, held Held) (e *Emulation, path string, log *bytes.Buffer) {
	t.Helper()
	path, log = filepath.Join(t.TempDir(), "gpus.yaml"), &bytes.Buffer{}
	write(t, path, text)
	e, err := Emulated(path, held, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return e, path, log
}

// everything is the example of Emulation, with two instances on another GPU.
const everything = `devices:
- uuid: GPU-1
  name: NVIDIA A100-SXM4-80GB
  pci: 00000000:3B:00.0
  memory: 80Gi
  processes:
  - {pid: 4711, memory: 30Gi}
  utilization: 0.4
  power: 250
  powerLimit: 400
  energy: 1200
  temperature: 61
  throttled: [Heat]
  eccUncorrected: 0
  rowRemap: Pending
- memory: 85899345920
  temperature: 50
  mig:
  - {uuid: MIG-1, profile: 3g.40gb, memory: 40Gi, others: 1Gi}
  - {memory: 0.5Gi}
`

func TestEmulated(t *testing.T) {
	e, _, _ := emulate(t, everything, func(uuid string) int64 { return map[string]int64{"GPU-1": 10 << 30, "MIG-1": 60 << 30}[uuid] })
	got, err := e.Devices()
	if err != nil {
		t.Fatal(err)
	}
	want := []Unit{
		{UUID: "GPU-1", Name: "NVIDIA A100-SXM4-80GB", PCI: "00000000:3B:00.0", Total: 80 << 30},
		{UUID: "GPU-emulated-1", Name: "Emulated GPU", PCI: "00000000:01:00.0", Index: 1, Split: true, Total: 80 << 30},
		{UUID: "MIG-1", Name: "Emulated GPU MIG 3g.40gb", PCI: "00000000:01:00.0", Index: 1, MIG: true, Parent: "GPU-emulated-1", Total: 40 << 30},
		{UUID: "MIG-emulated-1-1", Name: "Emulated GPU MIG", PCI: "00000000:01:00.0", Index: 1, MIG: true, Parent: "GPU-emulated-1", Total: 512 << 20},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for uuid, want := range map[string]Reading{
		"GPU-1": {
			Total: 80 << 30, Free: 40 << 30, Ours: 10 << 30, Others: 30 << 30, OursFrom: OursHeld,
			Utilization: Known(0.4), PowerWatts: Known(250), PowerLimitWatts: Known(400), EnergyJoules: Known(1200), TemperatureCelsius: Known(61),
			Throttled: []string{ThrottleHeat}, ECCUncorrected: Known(0), RemapPending: true, Processes: []Process{{PID: 4711, Bytes: 30 << 30}},
		},
		"MIG-1":            {Total: 40 << 30, Ours: 40 << 30, OursFrom: OursHeld, TemperatureCelsius: Known(50)}, // no more than there is
		"MIG-emulated-1-1": {Total: 512 << 20, Free: 512 << 20, OursFrom: OursHeld, TemperatureCelsius: Known(50)},
	} {
		r, err := e.Read(uuid)
		r.Time = time.Time{}
		if d := cmp.Diff(want, r); d != "" || err != nil {
			t.Errorf("%s: %v\n%s", uuid, err, d)
		}
	}
	if _, err := e.Read("GPU-9"); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if claimed, err := Claim(e, "cuda", 0, Options{}); err != nil || len(claimed) != 3 || claimed[0].Capacity != 50<<30 || claimed[2].UUID != "MIG-emulated-1-1" {
		t.Error(claimed, err)
	}
}

func TestEmulatedWrong(t *testing.T) {
	for text, says := range map[string]string{
		"":                          "no devices",
		"devices: [{}]":             "memory is missing",
		"devices: [{memory: many}]": "no size",
		"devices: [{memory: -1}]":   "no size",
		"devices: [{memory: 1e30}]": "no size",
		"devices: [{memory: NaN}]":  "no size",
		"devices: [{memry: 1Gi}]":   "memry",
		"devices: [{memory: 1Gi":    "yaml",
		"devices: [{memory: 1Gi, uuid: a}, {memory: 1Gi, uuid: a}]":                 "two have this uuid",
		"devices: [{memory: 1Gi, others: 2Gi}]":                                     "more than its memory",
		"devices: [{memory: 1Gi, utilization: 40}]":                                 "from 0 to 1",
		"devices: [{memory: 1Gi, power: -3}]":                                       "power is -3",
		"devices: [{memory: 1Gi, throttled: [Hot]}]":                                "HeatHard",
		"devices: [{memory: 1Gi, rowRemap: Yes}]":                                   "Pending or Failed",
		"devices: [{memory: 1Gi, mig: [{memory: 1Gi, power: 3}]}]":                  "only uuid",
		"devices: [{memory: 1Gi, mig: [{memory: 1Gi, mig: [{}]}]}]":                 "only uuid",
		"devices: [{memory: 2Gi, others: 1Gi, mig: [{memory: 1Gi}]}]":               "it is split, and strangers hold memory of its instances",
		"devices: [{memory: 1Gi, mig: [{profile: 1g.5gb}]}]":                        "memory is missing",
		"devices: [{memory: 1Gi, mig: [{memory: 1Gi, gone: true}]}]":                "only uuid",
		"devices: [{memory: 1Gi, mig: [{memory: 1Gi, temperature: 9}]}]":            "only uuid",
		"devices: [{memory: 1Gi, mig: [{memory: 1Gi, rowRemap: No}]}]":              "only uuid",
		"devices: [{memory: 1Gi, profile: 1g.5gb}]":                                 "write it into mig",
		"devices: [{memory: 1Gi, throttled: [Heat, Heat]}]":                         "each once",
		"devices: [{memory: 1Gi, others: 1Mi, processes: [{pid: 1, memory: 1Mi}]}]": "write one of them",
		"devices: [{memory: 4Gi, mig: [{memory: 3Gi}, {memory: 2Gi}]}]":             "more memory than it has itself",
		"devices: [{memory: 1Gi, xids: [-79]}]":                                     "as in [79]",
		"devices: [{memory: 1Gi, xids: [0]}]":                                       "as in [79]",
		// Together more than an int64 has.
		"devices: [{memory: 1Gi, processes: [{memory: 4000000Ti}, {memory: 4000000Ti}, {memory: 4000000Ti}]}]": "more than its memory",
		"devices: [{memory: 1Gi}]" + strings.Repeat(" ", 64<<10):                                               "describe fewer devices",
		"devices: [{memory: 1Gi, processes: [{pid: 1, memory: 1025Mi}]}]":                                      "more than its memory",
		// Figures that no device has.
		"devices: [{memory: 1Gi, power: 1e308}]":                                                                "power is 1e+308; write a number from 0 to 10000",
		"devices: [{memory: 1Gi, powerLimit: 1e5}]":                                                             "powerLimit is 100000",
		"devices: [{memory: 1Gi, energy: 1e16}]":                                                                "energy is 1e+16",
		"devices: [{memory: 1Gi, temperature: 1e9}]":                                                            "temperature is 1e+09; write a number from -100 to 200",
		"devices: [{memory: 1Gi, eccUncorrected: 1e300}]":                                                       "eccUncorrected is 1e+300",
		"devices: [{memory: 1Gi, eccUncorrected: 0.5}]":                                                         "how many errors there are",
		"devices: [{memory: 1Gi, power: .inf}]":                                                                 "infinite",
		"devices: [{memory: 1Gi, power: .nan}]":                                                                 "infinite or none",
		"devices: [{memory: 1Gi, xids: [123456789]}]":                                                           "as in [79]",
		"devices: [{memory: 2048Ti}]":                                                                           "1024Ti at most",
		"devices: [{memory: 1Gi, processes: [{pid: 7, memory: 1Mi}, {pid: 7, memory: 1Mi}]}]":                   "a process has the number 7",
		"devices: [{memory: 1Gi, processes: [{pid: -7, memory: 1Mi}]}]":                                         "a process has the number -7",
		"devices: [{memory: 1Gi, processes: [{memory: 1Mi}]}]":                                                  "or others in their place",
		"devices: [{memory: 1Gi, mig: [{memory: 1Gi, processes: [{pid: 7, memory: 1}, {pid: 7, memory: 1}]}]}]": "a process has the number 7",
		`devices: [{memory: 1Gi, uuid: "GPU\e[31m"}]`:                                                           "96 printable bytes",
		"devices: [{memory: 1Gi, name: " + strings.Repeat("x", 97) + "}]":                                       "96 printable bytes",
	} {
		path := filepath.Join(t.TempDir(), "gpus")
		write(t, path, text)
		if _, err := Emulated(path, nil, nil); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := Emulated(filepath.Join(t.TempDir(), "none"), nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestEmulatedWrongWords: what is wrong is said in one line and without types of Go's.
func TestEmulatedWrongWords(t *testing.T) {
	for text, says := range map[string]string{
		"devices: [{memory: 1Gi}, {memory: 1Gi, xids: much}]":   "device GPU-emulated-1: devices.xids is a string, not a list",
		"devices: [{uuid: GPU-7, memory: 1Gi, temperatur: 61}]": `device GPU-7: unknown field "temperatur"; a device has uuid, name, pci, profile, memory, others, processes, utilization, power, powerLimit, energy, temperature, `,
		"devices: [{memory: 1Gi, processes: [{pd: 1}]}]":        `unknown field "pd"; a device has uuid, name, pci, profile, memory, others, processes, utilization, power, powerLimit, energy, temperature, throttled, eccUncorrected, rowRemap, xids, gone, mig, and each of processes has pid, memory`,
		"device: []":                                         `unknown field "device"; write devices`,
		"devices: [{memory: 1Gi, power: much}]":              "devices.power is a string, not a number",
		"devices: [{memory: 1Gi, gone: 1}]":                  "devices.gone is a number, not true or false",
		"devices: [{memory: 1Gi, xids: [1.5]}]":              "devices.xids is a number 1.5, not a whole number",
		"devices: [{memory: 1Gi, xids: 79}]":                 "devices.xids is a number, not a list",
		"devices: [{memory: 1Gi, processes: [{pid: 1e30}]}]": "devices.processes.pid is a number 1e+30, not a whole number",
		"devices: {memory: 1Gi}":                             "devices is an object, not a list",
		"devices: [80Gi]":                                    "devices is a string, not an object",
		"80Gi":                                               "it is a string, not an object",
		"[]":                                                 "it is a list, not an object",
		"devices: [{memory: [1Gi]}]":                         `["1Gi"] is no size; write 30Gi or a number of bytes`,
		"devices: [{memory: {1: 2}}]":                        `{"1":2} is no size`,
		"devices: [{memry: 1Gi}]":                            `unknown field "memry"`,
		"devices: [{memory: 1Gi, memory: 2Gi}]":              `yaml: unmarshal errors: line 1: key "memory" already set in map`,
		"devices: [{[1]: 2}]":                                "is no name of a field",
		"devices: [{~: 2}]":                                  "is no name of a field",
		"devices: [{memory: 1Gi, mig: 1}]":                   "devices.mig is a number, not a list",
		"devices: [{memory: 1Gi, mig: [{memory: 1Gi, uuid: []}]}]": "devices.mig.uuid is a list, not a string",
		"devices: \t- {}": "yaml: ",
	} {
		_, err := describe([]byte(text))
		if err == nil || err.Error() != says && !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %s", text, err, says)
			continue
		}
		said := err.Error()
		for _, never := range []string{"\n", "Go ", "struct", "interface", "float64", "int64", "device.", "json", "JSON"} {
			if strings.Contains(said, never) {
				t.Errorf("%q: %q has %q", text, said, never)
			}
		}
	}
}

// TestEmulatedStays: devices do not become others, and none comes. One may go and come back.
func TestEmulatedStays(t *testing.T) {
	const two = "devices: [{memory: 10Gi}, {uuid: GPU-2, memory: 20Gi, mig: [{uuid: MIG-1, profile: 1g.5gb, memory: 5Gi}]}]"
	e, path, log := emulate(t, two, nil)
	total := func(uuid string) int64 {
		r, err := e.Read(uuid)
		if err != nil && !errors.Is(err, ErrGone) {
			t.Fatal(err)
		}
		return r.Total
	}
	for text, says := range map[string]string{
		"devices: [{memory: 9Gi}]":                                     "device GPU-emulated-0 is Emulated GPU with 9 GiB, and it was Emulated GPU with 10 GiB; write as others",
		"devices: [{memory: 10Gi, name: NVIDIA}]":                      "device GPU-emulated-0 is NVIDIA with 10 GiB",
		"devices: [{memory: 10Gi}, {memory: 20Gi}]":                    "device GPU-emulated-1 is new, and a process that runs gets no further ones; start it anew",
		"devices: [{memory: 10Gi, mig: [{memory: 1Gi}]}]":              "device MIG-emulated-0-0 is new",
		strings.Replace(two, "1g.5gb", "1g.10gb", 1):                   "device MIG-1 is Emulated GPU MIG 1g.10gb with 5 GiB on GPU-2, and",
		strings.Replace(two, "memory: 5Gi", "memory: 6Gi", 1):          "device MIG-1 is Emulated GPU MIG 1g.5gb with 6 GiB",
		"devices: [{memory: 10Gi, mig: [{uuid: MIG-1, memory: 5Gi}]}]": "on GPU-emulated-0, and it was",
	} {
		log.Reset()
		write(t, path, text)
		for range 2 {
			if a, b := total("GPU-emulated-0"), total("MIG-1"); a != 10<<30 || b != 5<<30 {
				t.Errorf("%s: %d, %d", text, a, b)
			}
		}
		if said := log.String(); !strings.Contains(said, says) || strings.Count(said, "last good description stays in force") != 1 {
			t.Errorf("%s: %s", text, said)
		}
	}
	log.Reset()
	write(t, path, "devices: [{memory: 10Gi, power: 100}]")
	if a, b := total("GPU-emulated-0"), total("MIG-1"); a != 10<<30 || b != 0 {
		t.Error(a, b)
	}
	write(t, path, two)
	if b := total("MIG-1"); b != 5<<30 || log.Len() > 0 {
		t.Error(b, log)
	}
}

// TestEmulatedChanges: the last good contents stay in force, and what is wrong is said once.
func TestEmulatedChanges(t *testing.T) {
	e, path, log := emulate(t, "devices: [{memory: 10Gi}]", nil)
	others := func() int64 {
		t.Helper()
		r, err := e.Read("GPU-emulated-0")
		if err != nil {
			t.Fatal(err)
		}
		return r.Others
	}
	write(t, path, "devices: [{memory: 10Gi, others: 3Gi}]")
	if n := others(); n != 3<<30 {
		t.Error(n)
	}
	write(t, path, "devices: [{memory: 10Gi, others: ")
	if n := others() + others(); n != 6<<30 {
		t.Error(n)
	}
	if n := strings.Count(log.String(), "last good description stays in force"); n != 1 {
		t.Errorf("%d times: %s", n, log)
	}
	write(t, path, "devices: [{memory: 10Gi, others: 3Gi}]") // as it was
	if n := others(); n != 3<<30 {
		t.Error(n)
	}
	write(t, path, "devices: [{memory: 10Gi, others: ") // and wrong again
	if n := others(); n != 3<<30 || strings.Count(log.String(), "\n") != 2 {
		t.Error(n, log)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if n := others(); n != 3<<30 || strings.Count(log.String(), "\n") != 3 {
		t.Error(n, log)
	}
	write(t, path, "devices: [{memory: 10Gi, gone: true}]")
	if _, err := e.Read("GPU-emulated-0"); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	write(t, path, "devices: [{memory: 10Gi}]")
	if n := others(); n != 0 {
		t.Error(n)
	}
}

// TestEmulatedEnergy: the counter is the sum of power over time, whoever reads it.
func TestEmulatedEnergy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, path, _ := emulate(t, "devices: [{memory: 10Gi, power: 100}]", nil)
		joules := func() float64 {
			r, err := e.Read("GPU-emulated-0")
			if err != nil {
				t.Fatal(err)
			}
			return r.EnergyJoules.Value
		}
		time.Sleep(10 * time.Second)
		if j := joules(); j != 1000 {
			t.Error(j)
		}
		write(t, path, "devices: [{memory: 10Gi, power: 300}]")
		_ = joules() // which sees it
		time.Sleep(10 * time.Second)
		if j := joules(); j != 4000 {
			t.Error(j)
		}
		write(t, path, "devices: [{memory: 10Gi}]")
		if r, err := e.Read("GPU-emulated-0"); r.EnergyJoules.Known || r.PowerWatts.Known || err != nil {
			t.Error(r, err)
		}
	})
}

func TestEmulatedEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, path, _ := emulate(t, "devices: [{memory: 10Gi, xids: [63]}, {memory: 1Gi}]", nil)
		ctx, cancel := context.WithCancel(t.Context())
		events := e.Events(ctx)
		next := func(uuid string, xid int) {
			t.Helper()
			if got := <-events; got.UUID != uuid || got.XID != xid || got.Time.IsZero() || got.Message == "" {
				t.Errorf("%+v, want %d of %s", got, xid, uuid)
			}
		}
		next("GPU-emulated-0", 63)
		write(t, path, "devices: [{memory: 10Gi, xids: [63, 31]}, {memory: 1Gi, xids: [79]}]")
		next("GPU-emulated-0", 31)
		next("GPU-emulated-1", 79)
		if _, err := e.Read("GPU-emulated-1"); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		write(t, path, "devices: [{memory: 10Gi}, {memory: 1Gi}]")
		time.Sleep(time.Second)
		if _, err := e.Read("GPU-emulated-1"); err != nil {
			t.Error(err)
		}
		write(t, path, "devices: [{memory: 10Gi, xids: [31, 31]}, {memory: 1Gi}]")
		next("GPU-emulated-0", 31)
		next("GPU-emulated-0", 31)
		cancel()
		if e, open := <-events; open {
			t.Error(e)
		}
		if err := errors.Join(e.Close(), e.Close()); err != nil {
			t.Error(err)
		}
	})
	e, _, _ := emulate(t, "devices: [{memory: 10Gi}]", nil)
	events := e.Events(t.Context())
	e.Close()
	if e, open := <-events; open {
		t.Error(e)
	}
}

// FuzzDescribe: a description or an error; what is described adds up.
func FuzzDescribe(f *testing.F) {
	f.Add([]byte(everything), int64(1<<30))
	f.Add([]byte("devices: [{memory: 1Ti, others: 0.3Ti, xids: [79]}]"), int64(-1))
	f.Add([]byte("devices: [{memory: 1Gi, power: 9e3, eccUncorrected: 7}, {[1]: 2}]"), int64(1))
	f.Fuzz(func(t *testing.T, text []byte, held int64) {
		gpus, err := describe(text)
		if err != nil {
			if said := err.Error(); strings.Contains(said, "\n") || strings.Contains(said, "Go struct") || strings.Contains(said, "of type") {
				t.Fatal(said)
			}
			return
		}
		e := &Emulation{energy: map[string]*counter{}, first: identities(gpus)}
		if err := e.stays(gpus); err != nil {
			t.Fatal(err)
		}
		e.take(gpus, time.Time{})
		for _, g := range gpus {
			for _, d := range append([]gpu{g}, g.MIG...) {
				r, err := e.read(d, g, max(held, 0), time.Time{}.AddDate(100, 0, 0))
				if (err != nil) != g.gone() {
					t.Fatal(err)
				}
				for _, f := range []Figure{r.Utilization, r.PowerWatts, r.PowerLimitWatts, r.EnergyJoules, r.TemperatureCelsius, r.ECCUncorrected} {
					if math.IsInf(f.Value, 0) || math.IsNaN(f.Value) || f.Value > 1e15 {
						t.Fatalf("%+v", r)
					}
				}
				if err == nil && (r.Total <= 0 || r.Free < 0 || r.Ours < 0 || r.Others < 0 || r.Total != r.Free+r.Ours+r.Others) {
					t.Fatalf("%+v", r)
				}
			}
		}
	})
}
