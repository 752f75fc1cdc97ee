//go:build !cuda || !cgo

package device

// NVML reads the devices that NVIDIA's driver knows. This program is built without it: the error is ErrNotBuilt.
func NVML(Held) (Monitor, error) { return nil, ErrNotBuilt }
