//go:build cuda && cgo

package cuda

import (
	"errors"
	"testing"

	"github.com/estiba/estiba/runtime/backend/backendtest"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/tensor"
)

// claim gives the first device, with memory for so many extents.
func claim(t *testing.T, extents int) device.Device {
	t.Helper()
	all, err := Devices(device.Options{Memory: int64(extents) * Extent})
	if errors.Is(err, ErrNone) {
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

func opened(t *testing.T, extents int) *Backend {
	t.Helper()
	b, err := New(claim(t, extents), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b.(*Backend)
}

// served is what is promised of a device: keys and values are halves, activations of quantized weights int8 in steps of few
// rows, and bfloat16, or halves for F16, in steps of more. Kernels of few rows are others than those of many.
var served = backendtest.Served{
	Off: func(d tensor.DType) float64 {
		switch d {
		case tensor.F32:
			return 1e-3
		case tensor.F16, tensor.BF16:
			return 1e-2
		}
		return 2e-2
	},
	Alone: func(tensor.DType) bool { return false },
}

func TestConformance(t *testing.T) { backendtest.RunServed(t, opened(t, 400), served) }
