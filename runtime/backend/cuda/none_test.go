//go:build !(cuda && cgo)

package cuda

import (
	"errors"
	"strings"
	"testing"
)

// TestNone: a build without CUDA says how to come to one with it, by the target that README names.
func TestNone(t *testing.T) {
	if _, err := Count(); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "make build-cuda") {
		t.Error(err)
	}
}
