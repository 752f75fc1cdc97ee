// Package file does with a user's files what commands need: it reads them within a
// bound, and replaces them whole. Start with Read and Create.
package file

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Read gives the content of a file, pipe or device that has at most most bytes. It
// ends with ctx, even while a pipe has no writer. Errors name the path.
func Read(ctx context.Context, path string, most int64) ([]byte, error) {
	text, err := within(ctx, func() ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readAll(f, most)
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, Cause(err))
	}
	return text, nil
}

// ReadFrom is Read for what is open already, such as the standard input.
func ReadFrom(ctx context.Context, r io.Reader, most int64) ([]byte, error) {
	text, err := within(ctx, func() ([]byte, error) { return readAll(r, most) })
	return text, Cause(err)
}

// within gives what read gives, or the end of ctx if that comes first.
func within(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := read()
		done <- result{text, err}
	}()
	select {
	case r := <-done:
		return r.text, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func readAll(r io.Reader, most int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(text)) > most {
		return nil, fmt.Errorf("it has more than %d MiB, which are the most that are read", most>>20)
	}
	return text, err
}

// Cause is err without the call and the path, for callers that say those themselves.
func Cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// Replacement is a file in the making. It takes the place of another, or of none,
// once it is whole.
type Replacement struct {
	f    *os.File
	path string      // the file itself, not a link to it
	name string      // that f has until it is whole; empty: none
	old  fs.FileInfo // nil: there was none
}

// Create begins a file at path, and finds out before the work whether it can be
// there: a folder, device or pipe is never replaced. Behind a link it is the file
// that is replaced, not the link.
func Create(path string) (*Replacement, error) {
	r, err := create(path)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, Cause(err))
	}
	return r, nil
}

func create(path string) (*Replacement, error) {
	if path == "" || strings.HasSuffix(path, string(filepath.Separator)) {
		return nil, errors.New("it is a folder: give the name of a file")
	}
	old, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
		if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no folder %s: make it first", filepath.Dir(path))
		}
	case err != nil:
		return nil, err
	case old.IsDir():
		return nil, errors.New("it is a folder: give the name of a file")
	case !old.Mode().IsRegular():
		return nil, errors.New("it is a device or a pipe, and only files are replaced: give the name of a file")
	}
	if path, err = behindLinks(path); err != nil {
		return nil, err
	}
	mode := fs.FileMode(0o666) // less the umask
	if old != nil {
		mode = old.Mode().Perm()
		if mode&0o222 == 0 { // which root could write all the same
			return nil, fmt.Errorf("nobody may write to it (its mode is %04o): give another name, or chmod it", mode)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0) // a file that may not be written is not replaced either
		if err != nil {
			return nil, err
		}
		f.Close()
	}
	if _, err := os.Stat("/proc/self/fd"); err == nil { // through which it gets its name
		if f, err := unnamed(filepath.Dir(path), mode); err == nil {
			return &Replacement{f, path, "", old}, nil
		}
	}
	name := hidden(path)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return nil, err
	}
	return &Replacement{f, path, name, old}, nil
}

// hidden is a name beside path that nothing has.
func hidden(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()[:8])
}

// behindLinks is where path leads, though there may be no file yet.
func behindLinks(path string) (string, error) {
	for range 40 {
		folder, err := filepath.EvalSymlinks(filepath.Dir(path))
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("there is no folder %s: make it first", filepath.Dir(path))
		}
		if err != nil {
			return "", err
		}
		path = filepath.Join(folder, filepath.Base(path))
		to, err := os.Readlink(path)
		if err != nil {
			return path, nil // no link
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(folder, to)
		}
		path = to
	}
	return "", syscall.ELOOP
}

// Write adds to the file.
func (r *Replacement) Write(b []byte) (int, error) {
	n, err := r.f.Write(b)
	if err != nil {
		err = fmt.Errorf("write %s: %w", r.path, Cause(err))
	}
	return n, err
}

// Commit makes the file what path gives, with the mode of the one before it.
func (r *Replacement) Commit() error {
	err := r.keep()
	if name := hidden(r.path); err == nil && r.name == "" {
		if err = give(r.f, name); err == nil {
			r.name = name
		}
	}
	if e := r.f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(r.name, r.path)
	}
	if err != nil {
		if r.name != "" {
			os.Remove(r.name)
		}
		return fmt.Errorf("write %s: %w", r.path, Cause(err))
	}
	return nil
}

// keep gives the file what the one before it had.
func (r *Replacement) keep() error {
	if r.old == nil {
		return nil
	}
	if s, ok := r.old.Sys().(*syscall.Stat_t); ok {
		_ = r.f.Chown(int(s.Uid), int(s.Gid)) // as far as this user may
	}
	return r.f.Chmod(r.old.Mode().Perm())
}

// Discard removes what has been written. After Commit it does nothing.
func (r *Replacement) Discard() {
	if r.f.Close() == nil && r.name != "" {
		os.Remove(r.name)
	}
}
