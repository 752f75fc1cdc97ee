//go:build cuda && cgo

package library

// #cgo LDFLAGS: -ldl
// #include <stdlib.h>
// #include "try.h"
import "C"

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrMissing says that a library is nowhere to be found, which nothing but the giving of it helps.
var ErrMissing = errors.New("no such library")

// missing is an ErrMissing in the loader's words.
type missing string

func (m missing) Error() string        { return string(m) }
func (m missing) Is(target error) bool { return target == ErrMissing }

// Try loads a library in a child process and calls the first of the functions initialize that it has, each of which takes
// the number 0 or nothing. The error says in one line why this process had better not. Where there can be no child, or the
// process has the library already, nothing is known against it.
func Try(name string, initialize ...string) error { return try(patience, name, initialize...) }

// patience is how long a library may take to begin: a driver wakes up one device after the other, each for seconds.
const patience = 2 * time.Minute

func try(patience time.Duration, name string, initialize ...string) error {
	from, to, err := os.Pipe()
	if err != nil {
		return nil
	}
	defer from.Close()
	names := make([]*C.char, 1, 1+len(initialize))
	names[0] = C.CString(name)
	for _, f := range initialize {
		names = append(names, C.CString(f))
	}
	child := int(C.estiba_library_try(names[0], unsafe.SliceData(names[1:]), C.int(len(initialize)), C.int(to.Fd())))
	for _, n := range names {
		C.free(unsafe.Pointer(n))
	}
	to.Close()
	if child <= 0 {
		return nil
	}
	_ = from.SetReadDeadline(time.Now().Add(patience)) // a pipe has deadlines
	report, err := io.ReadAll(from)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = unix.Kill(child, unix.SIGKILL)
		go wait(child) // for what hangs in the kernel that may be never
		return fmt.Errorf("%s does not begin within %v, as where a device hangs; see the kernel's log, and reset the device or restart the machine", name, patience)
	}
	status, err := wait(child)
	if err != nil {
		return nil
	}
	signal := status.ExitStatus() - C.LIBRARY_SIGNAL
	if status.Signaled() { // by somebody else: what the library does is caught
		signal = int(status.Signal())
	}
	switch {
	case status.ExitStatus() == 0:
		return nil
	case status.ExitStatus() == C.LIBRARY_REFUSED:
		said := string(report)
		if !strings.Contains(said, filepath.Base(name)) { // but another one that it needs
			said = name + ": " + said
		}
		switch other := foreign(name); {
		case other != "":
			return errors.New(said + other)
		case strings.HasPrefix(said, name+": cannot open") && strings.HasSuffix(said, "No such file or directory"):
			return missing(said)
		}
		return errors.New(said + "; install the driver anew")
	case signal > 0:
		s := unix.Signal(signal)
		return fmt.Errorf("%s ends the process that loads it with %s (%v), as damaged libraries do; install the driver anew", found(name, string(report)), unix.SignalName(s), s)
	}
	return fmt.Errorf("%s ends the process that loads it with exit code %d; install the driver anew", name, status.ExitStatus())
}

// wait for the end of a child.
func wait(child int) (status unix.WaitStatus, err error) {
	for {
		if _, err = unix.Wait4(child, &status, 0, nil); err != unix.EINTR {
			return status, err
		}
	}
}

// found is the file of a library, by what was mapped.
func found(name, maps string) string {
	library, _, _ := strings.Cut(filepath.Base(name), ".so.") // libcuda.so.1 links to libcuda.so.535.104.05
	for line := range strings.Lines(maps) {
		if at := strings.IndexByte(line, '/'); at >= 0 && strings.HasPrefix(filepath.Base(line[at:]), library+".so") {
			return strings.TrimSpace(line[at:])
		}
	}
	return name
}

// foreign says of a library that the loader has passed over, since it is for other machines, where it lies.
func foreign(name string) string {
	own := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
	for _, folder := range filepath.SplitList(os.Getenv("LD_LIBRARY_PATH")) {
		path := filepath.Join(folder, name)
		f, err := elf.Open(path)
		if err != nil {
			continue
		}
		f.Close()
		if f.Machine != own {
			return fmt.Sprintf(" (%s is for %v)", path, f.Machine)
		}
	}
	return ""
}
