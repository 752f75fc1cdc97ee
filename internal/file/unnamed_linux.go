package file

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// unnamed makes a file in a folder that has no name, so that nothing is left of it however the process ends.
// Some file systems cannot.
func unnamed(folder string, mode fs.FileMode) (*os.File, error) {
	return os.OpenFile(folder, os.O_WRONLY|unix.O_TMPFILE, mode)
}

// give an unnamed file a name.
func give(f *os.File, name string) error {
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
}
