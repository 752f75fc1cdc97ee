// Package named finds devices by the names that --device takes, and that reports give: the processor is cpu or
// cpu-0, NVIDIA's devices are cuda:0 or gpu-0 and so on. Open is for commands that compute on one device, Claim for workers.
package named

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/backend/cuda"
	"github.com/estiba/estiba/runtime/device"
)

// What a worker computes on.
const (
	Auto      = "auto" // all CUDA devices, where there are some, else the processor
	Processor = "cpu"
	CUDA      = "cuda"
)

// Help of --device of a command that computes on one device.
const Help = "what computes: cpu (or cpu-0), or an NVIDIA device: cuda:0 (or gpu-0) and so on, cuda for the first one"

// ClaimHelp of --device of a worker.
const ClaimHelp = "what computes: cpu, cuda (all devices that this process is given), or auto: cuda where there is a driver, else cpu"

// Check says what is wrong with the name of a device.
func Check(name string) error {
	_, err := report(name)
	return err
}

// report gives a device's name in reports.
func report(name string) (string, error) {
	switch name {
	case Processor, "cpu-0":
		return "cpu-0", nil
	case CUDA:
		return cuda.Name(0), nil
	}
	own := name
	if n, ok := strings.CutPrefix(name, CUDA+":"); ok {
		own = "gpu-" + n
	}
	if !cuda.IsName(own) {
		return "", fmt.Errorf("--device is %q: give cpu, or cuda:0, cuda:1 and so on, or cuda for the first one (auto is for serve and worker)", name)
	}
	return own, nil
}

// OnProcessor says whether a name that Check has nothing against is the processor's.
func OnProcessor(name string) bool { return name == Processor || name == "cpu-0" }

// Open a device for a command that loads a model or two; empty is the processor, which computes with so many threads. Of
// another device no more memory is taken than they need.
func Open(name string, threads int) (backend.Backend, error) {
	own, err := report(cmp.Or(name, Processor))
	if err != nil {
		return nil, err
	}
	if own == "cpu-0" {
		return cpu.New(own, cpu.Options{Threads: threads, Left: device.Rest(nil)})
	}
	all, err := cuda.Devices(device.Options{})
	if err != nil {
		return nil, Insisted(err)
	}
	at := slices.IndexFunc(all, func(d device.Device) bool { return d.Name == own })
	if at < 0 {
		return nil, fmt.Errorf("--device is %q: %d CUDA devices are there, from cuda:0 on", name, len(all))
	}
	return cuda.New(all[at], cuda.Options{Lazy: true})
}

// CheckClaim says what is wrong with what a worker is to compute on; empty is the processor.
func CheckClaim(which string) error {
	if which != "" && which != Auto && which != Processor && which != "cpu-0" && which != CUDA {
		return fmt.Errorf("--device is %q: give auto, cpu or cuda", which)
	}
	return nil
}

// Resolve says what a worker computes on: CUDA or Processor. What was decided is one line in the log.
func Resolve(which string, log *slog.Logger) (string, error) {
	if which != CUDA && which != Auto {
		return Processor, CheckClaim(which)
	}
	n, err := cuda.Count()
	switch {
	case err == nil:
		log.Info("CUDA devices compute", "devices", n)
		return CUDA, nil
	case which == CUDA || !errors.Is(err, cuda.ErrNone):
		return "", err
	}
	log.Info("the processor computes", "because", err.Error())
	return Processor, nil
}

// Insisted adds to an error of Resolve what somebody at a command line can do, who has asked for what is not there.
func Insisted(err error) error {
	if !errors.Is(err, cuda.ErrNone) || errors.Is(err, cuda.ErrBuild) { // which says so
		return err
	}
	return fmt.Errorf("%w; or compute with --device cpu", err)
}

// Claim is the devices of a worker that computes on what Resolve gave, and who watches them: nobody, if that is nil.
// held is how many bytes models hold of the device with a UUID.
func Claim(which string, o device.Options, held device.Held, log *slog.Logger) ([]device.Device, device.Monitor, error) {
	if which != CUDA {
		d, err := device.CPU(o)
		return []device.Device{d}, nil, err
	}
	own := map[string]int64{} // what opening a device took of it, by UUID
	m, unwatched := device.NVML(func(uuid string) int64 {
		n := own[uuid]
		if held != nil {
			n += held(uuid)
		}
		return n
	})
	if unwatched != nil {
		m = nil
	}
	before := others(m)
	all, err := cuda.Devices(device.Options{Memory: cmp.Or(o.Memory, o.Expected), Headroom: o.Headroom})
	if err != nil {
		if m != nil {
			m.Close()
		}
		return nil, nil, err
	}
	if unwatched != nil {
		log.Warn("nobody watches the devices", "error", unwatched)
	}
	for uuid, n := range others(m) { // where a driver does not say whose it is, it is strangers'
		own[uuid] = max(n-before[uuid], 0)
	}
	return all, m, nil
}

// others is what is held of each device that is not this process's as far as its monitor knows.
func others(m device.Monitor) map[string]int64 {
	all := map[string]int64{}
	if m == nil {
		return all
	}
	units, err := m.Devices()
	if err != nil {
		return all // its readings say so
	}
	for _, u := range units {
		if r, err := m.Read(u.UUID); err == nil {
			all[u.UUID] = r.Others
		}
	}
	return all
}
