package named

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/estiba/estiba/runtime/device"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"cpu": "cpu-0", "cpu-0": "cpu-0", "cuda": "gpu-0", "cuda:0": "gpu-0", "cuda:3": "gpu-3", "gpu-12": "gpu-12",
		"": "", "cuda:": "", "cuda:-1": "", "gpu": "", "gpu-x": "", "gpu-01": "", "cpu-1": "", "rocm:0": "",
	} {
		got, err := report(name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q is %q, %v; want %q", name, got, err, want)
		}
	}
	if _, err := report(Auto); err == nil || !strings.Contains(err.Error(), "or cuda for the first one (auto is for serve and worker)") {
		t.Error(err)
	}
	for _, which := range []string{"auto", "cpu", "cuda"} {
		if err := CheckClaim(which); err != nil {
			t.Error(err)
		}
	}
	if CheckClaim("cuda:0") == nil {
		t.Error("a worker takes one device by name")
	}
}

// TestAuto takes the processor where there is nothing else.
func TestAuto(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	which, err := Resolve(Auto, log)
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := Claim(which, device.Options{Memory: 64 << 20}, nil, log)
	if err != nil || len(all) == 0 {
		t.Errorf("got %v, %v", all, err)
	}
	b, err := Open("", 1)
	if err != nil || b.Name() != "cpu-0" {
		t.Errorf("got %v", err)
	}
	b.Close()
}
