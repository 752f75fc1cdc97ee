//go:build !(cuda && cgo)

package cuda

import (
	"fmt"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/device"
)

var errBuild = fmt.Errorf("%w: %w", ErrNone, ErrBuild)

// Count of this machine's devices: none, in this build.
func Count() (int, error) { return 0, errBuild }

// Devices of this machine: none, in this build.
func Devices(device.Options) ([]device.Device, error) { return nil, errBuild }

// New fails in this build.
func New(device.Device, Options) (backend.Backend, error) { return nil, errBuild }
