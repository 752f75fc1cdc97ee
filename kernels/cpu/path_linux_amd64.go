package cpu

import "golang.org/x/sys/unix"

// requestTiles asks Linux for the tile data of AMX, for this process and all its threads.
// Source: Linux, Documentation/arch/x86/xstate.rst.
func requestTiles() bool {
	const (
		archRequestPermission = 0x1023
		tileData              = 18
	)
	_, _, e := unix.RawSyscall(unix.SYS_ARCH_PRCTL, archRequestPermission, tileData, 0)
	return e == 0
}
