//go:build cuda && cgo

package driver

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend/cuda/driver/emulated"
)

// open the first device. Without one the test is skipped.
func open(t *testing.T) *Context {
	t.Helper()
	c, err := Open(0)
	if errors.Is(err, ErrNoDriver) {
		t.Skipf("%v; make test-cuda runs this on an emulated one", err)
	}
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wants that err is one of the driver with this number.
func wants(t *testing.T, err error, code int) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code != code {
		t.Fatalf("got %v, want error %d", err, code)
	}
	return e
}

func pin(t *testing.T, c *Context, n int) []byte {
	t.Helper()
	p, err := c.Pin(n)
	check(t, err)
	t.Cleanup(func() { check(t, p.Close()) })
	return p.Bytes
}

func stream(t *testing.T, c *Context) *Stream {
	t.Helper()
	s, err := c.NewStream()
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

func allocate(t *testing.T, c *Context, n int64) cuda.Address {
	t.Helper()
	at, err := c.Allocate(n)
	check(t, err)
	t.Cleanup(func() {
		if err := c.Free(at); err != nil {
			e, ok := errors.AsType[*Error](err)
			if !ok || !e.Sticky() {
				t.Error(err)
			}
		}
	})
	return at
}

func load(t *testing.T, c *Context) *Module {
	t.Helper()
	image, err := cuda.Module(c.Info().Major, c.Info().Minor)
	check(t, err)
	m, err := c.Load(image)
	check(t, err)
	return m
}

// launch of what kernels/cuda gives.
func launch(t *testing.T, m *Module, l cuda.Launch) Launch {
	t.Helper()
	k, err := m.Kernel(l.Kernel)
	check(t, err)
	return Launch{Kernel: k, Grid: l.Grid, Threads: l.Threads, Shared: l.Shared, Params: l.Params, Size: l.Size}
}

func put(b []byte, values ...float32) {
	for i, v := range values {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
}

func get(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) }

func TestDevices(t *testing.T) {
	c := open(t)
	infos, err := Devices()
	check(t, err)
	if infos[0] != c.Info() {
		t.Errorf("Devices says %+v, Open %+v", infos[0], c.Info())
	}
	i := infos[0]
	if i.Name == "" || !strings.Contains(i.UUID, "-") || strings.Count(i.PCI, ":") != 2 || i.Memory == 0 || i.Major == 0 || i.Processors == 0 || i.SharedPerBlock < 48<<10 || i.Driver < 11040 {
		t.Errorf("%+v", i)
	}
	free, total, err := c.Memory()
	check(t, err)
	if free <= 0 || free > total {
		t.Errorf("%d of %d bytes are free", free, total)
	}
	if _, err := Open(len(infos)); err == nil {
		t.Error("opened a device that is not there")
	}
}

// TestWithoutDriver runs this test's own program without the emulated driver.
func TestWithoutDriver(t *testing.T) {
	if os.Getenv("ESTIBA_WITHOUT_DRIVER") != "" {
		_, err := Devices()
		if err == nil {
			t.Skip("this machine has a driver")
		}
		if !errors.Is(err, ErrNoDriver) || !strings.Contains(err.Error(), "libcuda.so.1") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q", err)
		}
		if missing := os.Getenv("LD_LIBRARY_PATH") == ""; missing != strings.Contains(err.Error(), "(install NVIDIA's driver, or name its folder in LD_LIBRARY_PATH; ") {
			t.Errorf("%q", err)
		}
		return
	}
	damaged := t.TempDir() // loading it is the end of a process
	for _, folder := range filepath.SplitList(os.Getenv("LD_LIBRARY_PATH")) {
		if whole, err := os.ReadFile(filepath.Join(folder, "libcuda.so.1")); err == nil {
			check(t, os.WriteFile(filepath.Join(damaged, "libcuda.so.1"), whole[:100<<10], 0o600))
		}
	}
	for _, libraries := range []string{"", damaged} {
		command := exec.Command(os.Args[0], "-test.run", "^TestWithoutDriver$", "-test.v")
		for _, v := range os.Environ() {
			if !strings.HasPrefix(v, "LD_LIBRARY_PATH=") {
				command.Env = append(command.Env, v)
			}
		}
		command.Env = append(command.Env, "ESTIBA_WITHOUT_DRIVER=1", "LD_LIBRARY_PATH="+libraries)
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// TestNeedsLibcAlone looks at what a program with this package is linked to.
func TestNeedsLibcAlone(t *testing.T) {
	program, err := elf.Open(os.Args[0])
	check(t, err)
	defer program.Close()
	libraries, err := program.ImportedLibraries()
	check(t, err)
	if !slices.Equal(libraries, []string{"libc.so.6"}) {
		t.Error(libraries)
	}
}

func TestWithoutDevices(t *testing.T) {
	emulated.Set(t, "devices=0")
	if _, err := Open(0); !errors.Is(err, ErrNoDriver) {
		t.Error(err)
	}
}

// TestVisible: CUDA_VISIBLE_DEVICES divides the emulated devices as it does a driver's.
func TestVisible(t *testing.T) {
	emulated.Set(t, "") // at the end, without the variable
	t.Setenv("CUDA_VISIBLE_DEVICES", "")
	const uuid = "GPU-e571ba00-0000-0000-0000-0000000000"
	for list, want := range map[string]string{
		"0,1": "00 01", "2": "02", "2,0": "02 00", "1,7,0": "01", "x,0": "", "": "", uuid + "01,0": "01 00", "GPU-e571ba": "", "-1": "", "0,0,1": "00",
	} {
		t.Setenv("CUDA_VISIBLE_DEVICES", list)
		emulated.Set(t, "devices=3")
		infos, err := Devices()
		if (err == nil) != (want != "") {
			t.Errorf("%q: %v", list, err)
		}
		var got []string
		for _, i := range infos {
			got = append(got, strings.TrimPrefix(i.UUID, uuid))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %v, want %s", list, got, want)
		}
	}
}

// TestWrongSettings: the emulated driver does not begin with an operation that cannot fail.
func TestWrongSettings(t *testing.T) {
	if os.Getenv("ESTIBA_WRONG_SETTINGS") != "" {
		if _, err := Devices(); err == nil {
			t.Error("it begins")
		}
		return
	}
	emulated.Set(t, "fail=launch:1:1")
	again := exec.Command(os.Args[0], "-test.run", "^TestWrongSettings$")
	again.Env = append(os.Environ(), "ESTIBA_WRONG_SETTINGS=1", "ESTIBA_EMULATED_CUDA=fail=bogus:1:1")
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestCopies(t *testing.T) {
	c := open(t)
	s, host, at := stream(t, c), pin(t, c, 4096), allocate(t, c, 4096)
	for i := range host {
		host[i] = byte(i)
	}
	check(t, s.CopyIn(at, host[:100]))
	check(t, s.Fill(at+10, 200, 5))
	check(t, s.Copy(at+1000, at, 100))
	check(t, s.CopyOut(host[2000:2100], at+1000))
	check(t, s.Synchronize())
	for i, b := range host[2000:2100] {
		if want := byte(i); b != want && !(i >= 10 && i < 15 && b == 200) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	if done, err := s.Done(); !done || err != nil {
		t.Error(done, err)
	}
}

// TestThreads has goroutines, which the runtime moves from thread to thread, use one context.
func TestThreads(t *testing.T) {
	c := open(t)
	m := load(t, c)
	var all sync.WaitGroup
	for g := range 8 {
		s, host, at := stream(t, c), pin(t, c, 4096), allocate(t, c, 4096)
		scale := launch(t, m, cuda.Scale(at, at, 1000, float32(g+1)))
		all.Go(func() {
			for range 20 {
				for i := range 1000 {
					put(host[4*i:], float32(i))
				}
				if err := errors.Join(s.CopyIn(at, host), s.LaunchAll([]Launch{scale, scale}), s.CopyOut(host, at), s.Synchronize()); err != nil {
					t.Error(err)
					return
				}
				if got, want := get(host[4*999:]), float32(999*(g+1)*(g+1)); got != want {
					t.Errorf("got %g, want %g", got, want)
				}
			}
		})
	}
	all.Wait()
	check(t, c.Synchronize())
	check(t, m.Close())
}

func TestLaunchesThatAreRefused(t *testing.T) {
	c := open(t)
	m, s, at := load(t, c), stream(t, c), allocate(t, c, 4096)
	good := launch(t, m, cuda.Scale(at, at, 1000, 1))
	if registers, _, _, err := good.Kernel.Uses(); err != nil || registers < 0 {
		t.Error(registers, err)
	}
	if n, err := good.Kernel.BlocksPerProcessor(256, 0); err != nil || n < 1 {
		t.Error(n, err)
	}
	refused := func(t *testing.T, change func(*Launch)) {
		bad := good
		change(&bad)
		err := s.LaunchAll([]Launch{good, bad, good})
		if err == nil {
			t.Error("no error")
		} else if e := wants(t, err, 1); !strings.Contains(err.Error(), "scale (2 of 3)") || e.Sticky() {
			t.Error(err)
		}
	}
	for name, change := range map[string]func(*Launch){
		"too many threads":        func(l *Launch) { l.Threads = 2048 },
		"a grid that is too high": func(l *Launch) { l.Grid[1] = 70000 },
		"no blocks":               func(l *Launch) { l.Grid[0] = 0 },
		"too much shared memory":  func(l *Launch) { l.Shared = 300 << 10 },
	} {
		t.Run(name, func(t *testing.T) { refused(t, change) })
	}
	t.Run("parameters of another one", func(t *testing.T) {
		emulated.Set(t, "") // a real driver lets them pass
		refused(t, func(l *Launch) { l.Size -= 8 })
	})
	check(t, s.Synchronize())
	if _, err := m.Kernel("nothing"); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Error(err)
	}
	if _, err := c.Load([]byte("broken")); err == nil {
		t.Error("loaded what is no image")
	}
	check(t, m.Close())
}

func TestEvents(t *testing.T) {
	c := open(t)
	first, second, host, at := stream(t, c), stream(t, c), pin(t, c, 8192), allocate(t, c, 1<<20)
	var events [2]*Event
	for i := range events {
		e, err := c.NewEvent()
		check(t, err)
		defer e.Close()
		events[i] = e
	}
	if done, err := events[0].Done(); !done || err != nil {
		t.Errorf("an event that was never recorded: %t, %v", done, err)
	}
	for round := range 50 { // second must not copy before first has filled
		check(t, first.Record(events[0]))
		for range 10 {
			check(t, first.Fill(at, byte(round), 1<<20))
		}
		check(t, first.Record(events[1]))
		check(t, second.Wait(events[1]))
		check(t, second.CopyOut(host, at+1<<20-8192))
		check(t, second.Synchronize())
		if host[0] != byte(round) || host[8191] != byte(round) {
			t.Fatalf("round %d: %d", round, host[0])
		}
		check(t, events[1].Synchronize())
		if d, err := events[1].Since(events[0]); err != nil || d <= 0 {
			t.Fatal(d, err)
		}
	}
}

func TestCapture(t *testing.T) {
	c := open(t)
	m, s, host, at := load(t, c), stream(t, c), pin(t, c, 4096), allocate(t, c, 4096)
	other := stream(t, c)
	fork, err := c.NewEvent()
	check(t, err)
	defer fork.Close()
	join, err := c.NewEvent()
	check(t, err)
	defer join.Close()

	put(host, 1, 2)
	l := cuda.Scale(at, at, 2, 3)
	g, err := s.Capture(func() error {
		if err := errors.Join(s.CopyIn(at, host[:8]), s.Launch(launch(t, m, l)), s.Record(fork), other.Wait(fork)); err != nil {
			return err
		}
		return errors.Join(other.Launch(launch(t, m, cuda.Scale(at, at, 1, 10))), other.Record(join), s.Wait(join), s.CopyOut(host[8:16], at))
	})
	check(t, err)
	if get(host[8:]) != 0 {
		t.Error("ran while it was captured")
	}
	clear(unsafe.Slice((*byte)(l.Params), l.Size)) // parameters are those of then
	for i := range 3 {
		put(host, float32(i), 2) // memory is that of now
		check(t, s.Run(g))
		check(t, s.Synchronize())
		if a, b := get(host[8:]), get(host[12:]); a != float32(30*i) || b != 6 {
			t.Errorf("run %d: %g, %g", i, a, b)
		}
	}
	check(t, g.Close())

	broken := errors.New("broken")
	if _, err := s.Capture(func() error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := s.Capture(func() error { return errors.Join(s.Fill(at, 1, 1), s.Synchronize()) }); err == nil {
		t.Error("captured a stream that was waited for")
	}
	if _, err := s.Capture(func() error {
		return errors.Join(s.Record(fork), other.Wait(fork), other.Fill(at, 1, 1))
	}); err == nil {
		t.Error("captured what nothing waits for")
	}
	g, err = s.Capture(func() error { return s.Fill(at, 7, 8) }) // still works
	check(t, err)
	check(t, s.Run(g))
	check(t, s.CopyOut(host[:8], at))
	check(t, s.Synchronize())
	if host[7] != 7 {
		t.Error(host[:8])
	}
	check(t, g.Close())
	check(t, m.Close())
}

func TestVirtualMemory(t *testing.T) {
	c := open(t)
	s, host := stream(t, c), pin(t, c, 4096)
	size, err := c.Granularity()
	check(t, err)
	before, _, err := c.Memory()
	check(t, err)
	handles, err := c.NewHandles(size, 3)
	check(t, err)
	at, err := c.Reserve(4 * size)
	check(t, err)
	check(t, c.Map(at+cuda.Address(size), size, handles...))
	check(t, s.Fill(at+cuda.Address(size), 5, 3*size))
	check(t, s.Synchronize())
	// Mapped elsewhere, a handle has what it had.
	check(t, c.Unmap(at+cuda.Address(3*size), size, 1))
	check(t, s.Fill(at+cuda.Address(size), 6, 2*size))
	check(t, c.Map(at, size, handles[2]))
	check(t, s.CopyOut(host, at+cuda.Address(size)-2048))
	check(t, s.Synchronize())
	if host[2047] != 5 || host[2048] != 6 {
		t.Error(host[2047], host[2048])
	}
	if err := c.Map(at+cuda.Address(2*size), 2*size, handles[0]); err == nil {
		t.Error("mapped where something is, with another size")
	}
	if err := s.Fill(at+cuda.Address(3*size)-8, 1, 16); err == nil {
		t.Error("filled what is not mapped")
	}
	if err := c.Unreserve(at, 4*size); err == nil {
		t.Error("gave back addresses that are mapped")
	}
	check(t, c.Release(handles...))
	check(t, c.Unmap(at, size, 3))
	check(t, c.Unreserve(at, 4*size))
	if after, _, err := c.Memory(); err != nil || after < before {
		t.Errorf("%d bytes were free, and are %d: %v", before, after, err)
	}
}

func TestOutOfMemory(t *testing.T) {
	emulated.Set(t, "memory=16Mi,others=3Mi")
	c := open(t)
	handles, err := c.NewHandles(2<<20, 10)
	if e := wants(t, err, 2); !e.OutOfMemory() || e.Sticky() || len(handles) != 6 {
		t.Errorf("%d handles, %v", len(handles), err)
	}
	free, total, err := c.Memory()
	check(t, err)
	if free != 1<<20 || total != 16<<20 {
		t.Errorf("%d of %d bytes are free", free, total)
	}
	if _, err := c.Allocate(2 << 20); !wants(t, err, 2).OutOfMemory() {
		t.Error(err)
	}
	check(t, c.Release(handles...))
	at, err := c.Allocate(2 << 20)
	check(t, err)
	check(t, c.Free(at))
}

// TestIllegalAddress has kernels and copies touch what is not there: the context is dead, the process is not.
func TestIllegalAddress(t *testing.T) {
	emulated.Set(t, "")
	for name, elements := range map[string]int64{"one block": 10, "many": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			c := open(t)
			m, s, at := load(t, c), stream(t, c), allocate(t, c, 4096)
			nowhere, err := c.Reserve(8 << 20)
			check(t, err)
			check(t, s.Launch(launch(t, m, cuda.Scale(at, nowhere, elements, 1))))
			e := wants(t, s.Synchronize(), 700)
			if !e.Sticky() || e.Lost() {
				t.Error(e)
			}
			wants(t, s.Fill(at, 1, 1), 700)
			wants(t, c.Synchronize(), 700)
			if _, _, err := c.Memory(); err == nil {
				t.Error("a dead context answered")
			}
		})
	}
}

// TestUnmappedMeanwhile unmaps what queued work still needs.
func TestUnmappedMeanwhile(t *testing.T) {
	emulated.Set(t, "")
	c := open(t)
	s, first := stream(t, c), stream(t, c)
	at, err := c.Reserve(2 << 20)
	check(t, err)
	handles, err := c.NewHandles(2<<20, 1)
	check(t, err)
	check(t, c.Map(at, 2<<20, handles...))
	m := load(t, c)
	here := allocate(t, c, 4<<20)
	e, err := c.NewEvent()
	check(t, err)
	for range 20 {
		check(t, first.Launch(launch(t, m, cuda.Scale(here, here, 1<<18, 1))))
	}
	check(t, first.Record(e))
	check(t, s.Wait(e))
	check(t, s.Fill(at, 1, 2<<20))
	check(t, c.Unmap(at, 2<<20, 1))
	wants(t, s.Synchronize(), 700)
}

func TestFailures(t *testing.T) {
	emulated.Set(t, "fail=launch:3:719,devices=2")
	c := open(t)
	neighbour, err := Open(1)
	check(t, err)
	defer neighbour.Close()
	m, s, at := load(t, c), stream(t, c), allocate(t, c, 4096)
	l := launch(t, m, cuda.Scale(at, at, 10, 1))
	check(t, s.LaunchAll([]Launch{l, l}))
	check(t, s.Synchronize())
	check(t, s.Launch(l))
	if e := wants(t, s.Synchronize(), 719); !e.Sticky() || e.Lost() {
		t.Error(e)
	}
	check(t, neighbour.Synchronize())
}

func TestLostDevice(t *testing.T) {
	emulated.Set(t, "fail=copy:2:46:1,devices=2")
	c, err := Open(1)
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	neighbour := open(t)
	s, host := stream(t, c), pin(t, neighbour, 4096)
	at, err := c.Allocate(4096)
	check(t, err)
	check(t, s.CopyIn(at, host))
	if e := wants(t, s.CopyIn(at, host), 46); !e.Lost() || !e.Sticky() {
		t.Error(e)
	}
	wants(t, s.Synchronize(), 46)
	_, err = Open(1)
	wants(t, err, 46)
	there := allocate(t, neighbour, 4096)
	own := stream(t, neighbour)
	check(t, own.CopyIn(there, host))
	check(t, own.Synchronize())
}

func TestUnpinned(t *testing.T) {
	emulated.Set(t, "")
	c := open(t)
	s, at, host := stream(t, c), allocate(t, c, 4096), make([]byte, 4096)
	wants(t, s.CopyIn(at, host), 1)
	wants(t, s.CopyOut(host, at), 1)
	pinned := pin(t, c, 4096)
	check(t, s.CopyIn(at, pinned))
	check(t, s.Synchronize())
}

func TestLoadSaysWhy(t *testing.T) {
	emulated.Set(t, "")
	if _, err := open(t).Load([]byte("broken")); err == nil || !strings.Contains(err.Error(), "the image is broken") {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	for code, want := range map[int]string{1: "", 2: "memory", 700: "sticky", 719: "sticky", 46: "sticky lost", 999: "sticky lost", 600: ""} {
		e := &Error{Code: code}
		var got []string
		for name, is := range map[string]bool{"memory": e.OutOfMemory(), "sticky": e.Sticky()} {
			if is {
				got = append(got, name)
			}
		}
		if e.Lost() {
			got = append(got, "lost")
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%d: %q, want %q", code, got, want)
		}
	}
}
