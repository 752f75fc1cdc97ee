//go:build !amd64

package cpu

// pause waits n times some tens of cycles.
//
//go:noinline
func pause(n int) {
	for range n * 16 {
	}
}
