// Package cuda runs graphs on NVIDIA devices, by the kernels of kernels/cuda. It is in programs that are built with
// the tag cuda; any other has ErrNone to say, with what to do about it. Start with Devices and New, then
// Backend.Compile and program.Run.
//
// A device's memory is one slab of extents, claimed when the backend is made: weights and workspaces of a program are
// extents that lie one after the other in addresses of their own, KV extents lie where their number says. So
// it does not matter which extents are free, only how many.
package cuda

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/estiba/estiba/runtime/device"
)

// ErrNone says that there is no CUDA device to be had, and why.
var ErrNone = errors.New("no CUDA device")

// ErrBuild says that this program could not use one either; it comes with ErrNone.
var ErrBuild = errors.New("this program was built without CUDA; 'make build-cuda' builds one with it, bin/estiba-cuda; or compute with --device cpu")

// Missing stands for the devices that a process was to be given, and was not.
func Missing() device.Device {
	return device.Device{Name: Name(0), Kind: Kind, Description: "which is not there", Extent: Extent, Lost: true, Missing: true}
}

// Kind of a device that this package drives, for device.Device.
const Kind = "cuda"

// Extent is that of all CUDA devices: what their drivers map at a time.
const Extent = 2 << 20

// Options of a backend; the zero value works.
type Options struct {
	// Lazy takes the device's memory as it is needed, and not all of it at once: for a command that
	// loads one model.
	Lazy bool
	Log  *slog.Logger // nil: slog.Default()
}

// Name of a device by its number as the driver counts.
func Name(ordinal int) string { return fmt.Sprintf("gpu-%d", ordinal) }

// IsName says whether a name may be that of a device.
func IsName(name string) bool { _, err := ordinal(name); return err == nil }

// ordinal of a device's name.
func ordinal(name string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(name, "gpu-"))
	if err != nil || n < 0 || Name(n) != name {
		return 0, fmt.Errorf("%q is no CUDA device: they are called gpu-0, gpu-1 and so on", name)
	}
	return n, nil
}
