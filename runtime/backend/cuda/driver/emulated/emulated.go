//go:build cuda && cgo

package emulated

// #cgo LDFLAGS: -ldl
// #include <dlfcn.h>
// #include <stdbool.h>
// #include <stdlib.h>
// static bool (*find(void))(const char *) {
//	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
//	return library ? (bool (*)(const char *))dlsym(library, "estiba_emulated_set") : NULL;
// }
// static bool there(void) { return find() != NULL; }
// static bool set(const char *settings) { return find()(settings); }
import "C"

import (
	"os"
	"testing"
	"unsafe"
)

// Set replaces all settings of the emulated driver until the end of the test; what they count, they count from now
// on, and devices that were lost are back. Where the driver is a real one, or there is none, the test is skipped.
func Set(t testing.TB, settings string) {
	t.Helper()
	if !C.there() {
		t.Skip("the driver is not the emulated one; make test-cuda runs this")
	}
	set := func(settings string) {
		s := C.CString(settings)
		defer C.free(unsafe.Pointer(s))
		if !C.set(s) {
			t.Errorf("the emulated driver has no settings %q", settings)
		}
	}
	set(settings)
	t.Cleanup(func() { set(os.Getenv("ESTIBA_EMULATED_CUDA")) })
}
