//go:build cuda && cgo

package driver

import (
	"errors"
	"testing"
)

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

func TestOpen(t *testing.T) {
	c := open(t)
	t.Logf("%+v", c.Info())
	free, total, err := c.Memory()
	check(t, err)
	if free > total || total != c.Info().Memory {
		t.Errorf("%d of %d bytes are free", free, total)
	}
	p, err := c.Pin(4096)
	check(t, err)
	at, err := c.Allocate(4096)
	check(t, err)
	s, err := c.NewStream()
	check(t, err)
	p.Bytes[7] = 9
	check(t, s.CopyIn(at, p.Bytes))
	check(t, s.Fill(at, 3, 7))
	check(t, s.CopyOut(p.Bytes, at))
	check(t, s.Synchronize())
	if p.Bytes[6] != 3 || p.Bytes[7] != 9 {
		t.Error(p.Bytes[:10])
	}
	check(t, c.Free(at))
	check(t, s.Close())
	check(t, p.Close())
}
