//go:build cuda && cgo

package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/backend/cuda/driver/emulated"
)

// TestDeviceFails: a command whose device fails says in one line how, and what to do.
func TestDeviceFails(t *testing.T) {
	for fail, want := range map[string]struct {
		code int
		says string
	}{
		"launch:90:700": {exitDevice, "estiba: device gpu-0 is of no more use to this process: wait for a stream: CUDA_ERROR_ILLEGAL_ADDRESS (700); start it anew, or have a supervisor do so: another process can use the device\n"},
		"launch:90:46":  {1, "estiba: device gpu-0 is lost: wait for a stream: CUDA_ERROR_DEVICE_UNAVAILABLE (46); look for XIDs in the kernel's log, and reset the device or replace it\n"},
		"load:1:999":    {1, "estiba: device gpu-0 is lost: load kernels: CUDA_ERROR_UNKNOWN (999); look for XIDs in the kernel's log, and reset the device or replace it\n"},
	} {
		emulated.Set(t, "memory=128Mi,fail="+fail)
		var stdout, stderr bytes.Buffer
		code := Main([]string{"run", fixture.Model("stories260K/hf-f32"), "--device", "cuda:0", "--prompt", "Once", "--max-tokens", "20"}, nil, &stdout, &stderr)
		if _, says, _ := strings.Cut("\n"+stderr.String(), "\nestiba: "); code != want.code || "estiba: "+says != want.says {
			t.Errorf("%s: exit code %d: %s", fail, code, stderr.String())
		}
	}
}
