package weights

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"

	"github.com/estiba/estiba/runtime/tensor"
	"golang.org/x/sys/unix"
)

// ErrChanged: a mapped file shrank or its disk failed, so that data which the
// header promised cannot be read. The checkpoint is lost; the process is not.
var ErrChanged = errors.New("checkpoint changed or cannot be read any more")

// Checkpoint is a header whose files are mapped into memory, read-only.
//
// Reading a page that a file has lost since (somebody truncated it, the disk
// failed) is a fault, which ends a Go process. So data is read inside Guard. A
// fault on another goroutine than Guard's is not caught.
type Checkpoint struct {
	*Header
	mapped map[string][]byte
	close  sync.Once
}

// Open reads the header of a checkpoint and maps its files. It reads no data.
func Open(path string) (*Checkpoint, error) {
	h, err := Read(path)
	if err != nil {
		return nil, err
	}
	c := &Checkpoint{Header: h, mapped: map[string][]byte{}}
	for file, size := range h.sizes {
		data, err := mapFile(file, size)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("map %s: %w", file, err)
		}
		c.mapped[file] = data
	}
	return c, nil
}

// mapFile maps a file whose header was read when it had size bytes.
func mapFile(path string, size int64) ([]byte, error) {
	f, now, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the mapping stays
	if now != size {
		return nil, fmt.Errorf("%w: it had %d bytes a moment ago and has %d now", ErrChanged, size, now)
	}
	if size == 0 {
		return nil, nil
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return data, nil
}

// Tensor gives a tensor whose data is the mapped file: not aligned, and valid
// until Close. The error names file and tensor.
func (c *Checkpoint) Tensor(name string) (tensor.Tensor, error) {
	info, ok := c.Lookup(name)
	if !ok {
		return tensor.Tensor{}, fmt.Errorf("tensor %q: %w: the checkpoint lacks it", name, ErrInvalid)
	}
	if err := info.Supported(); err != nil {
		return tensor.Tensor{}, err
	}
	data := c.mapped[info.File]
	return tensor.Tensor{
		Name:   name,
		DType:  info.DType,
		Shape:  info.Shape,
		Data:   data[info.Offset : info.Offset+info.Size : info.Offset+info.Size],
		Mapped: true,
	}, nil
}

// Keep forgets what the header says beside these tensors: the fields, which
// nobody asks a mapped checkpoint for, and tensors that nobody reads.
func (c *Checkpoint) Keep(wanted func(tensor string) bool) {
	kept := &Header{Format: c.Format, sizes: c.sizes, byName: map[string]int{}}
	for _, info := range c.Tensors {
		if wanted(info.Name) {
			kept.byName[info.Name] = len(kept.Tensors)
			kept.Tensors = append(kept.Tensors, info)
		}
	}
	c.Header = kept
}

// Close unmaps the files; nothing may read their tensors any more. It may be called twice.
func (c *Checkpoint) Close() error {
	var errs []error
	c.close.Do(func() {
		for path, data := range c.mapped {
			if data == nil {
				continue
			}
			if err := unix.Munmap(data); err != nil {
				errs = append(errs, fmt.Errorf("unmap %s: %w", path, err))
			}
		}
		c.mapped = nil
	})
	return errors.Join(errs...)
}

// Guard calls read, and turns a fault on mapped data in it into ErrChanged. It
// protects the calling goroutine only; goroutines that read starts need a Guard
// of their own. A panic for any other reason goes on.
func Guard(read func() error) (err error) {
	before := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(before)
	defer func() {
		if p := recover(); p != nil {
			// Only a fault at an address has one; see runtime/debug.SetPanicOnFault.
			fault, ok := p.(interface{ Addr() uintptr })
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("%w (fault at address %#x)", ErrChanged, fault.Addr())
		}
	}()
	return read()
}
