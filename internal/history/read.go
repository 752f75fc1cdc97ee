package history

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// maxLine bounds one decision in JSON, and maxState what one describes, in bytes; with 10,000
	// Models on 1,000 workers they are about 40 MiB.
	maxLine  = 512 << 20
	maxState = 512 << 20
	// maxLines of one reading.
	maxLines = 1 << 20
)

var errNoStart = errors.New("its beginning is missing: the first line is no full one")

// ErrCutOff says that a history ended within a decision, as by the end of its
// writer; those before were read.
var ErrCutOff = errors.New("it ends within a decision, which is left out")

// Read calls each for the decisions of a history, the oldest first, until one
// returns an error. It is what Fetch gave, a file of --history-dir, or their lines
// put together. One that was cut off is read up to there; then the error is
// ErrCutOff. What is read may come from anywhere: wrong lines are errors, and memory
// is bounded.
func Read(r io.Reader, each func(Decision) error) error {
	var d decoder
	n := 0
	cut, err := lines(r, func(line []byte) error {
		n++
		if n > maxLines {
			return fmt.Errorf("more than %d decisions", maxLines)
		}
		decision, err := d.take(line)
		if err != nil {
			return fmt.Errorf("decision %d: %w", n, err)
		}
		return each(decision)
	})
	if err == nil && cut {
		return ErrCutOff
	}
	return err
}

// ReadPath reads a file, or all that are in a folder, and ends with ctx, even while a pipe has no
// writer. Of files that are cut off, the last one is named by an ErrCutOff once all are read.
func ReadPath(ctx context.Context, path string, each func(Decision) error) error {
	files, err := historyFiles(path)
	if err != nil {
		return err
	}
	var cut error
	for _, f := range files {
		err := readFile(ctx, f, each)
		switch {
		case errors.Is(err, ErrCutOff):
			cut = fmt.Errorf("read %s: %w", f, err)
		case err != nil:
			return fmt.Errorf("read %s: %w", f, err)
		}
	}
	return cut
}

func readFile(ctx context.Context, path string, each func(Decision) error) error {
	f, err := open(ctx, path)
	if err != nil {
		return err
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.Close() })() // a read that waits ends with it
	err = Read(f, each)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// open does not wait for the writer of a pipe after ctx has ended.
func open(ctx context.Context, path string) (*os.File, error) {
	type opened struct {
		f   *os.File
		err error
	}
	done := make(chan opened)
	go func() {
		f, err := os.Open(path)
		select {
		case done <- opened{f, err}:
		case <-ctx.Done():
			if err == nil {
				f.Close()
			}
		}
	}()
	select {
	case o := <-done:
		return o.f, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// historyFiles are the file itself, or those of a folder, in the order of time.
func historyFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w; name a file, or the folder that --history-dir named", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	files, err := filepath.Glob(filepath.Join(path, filePrefix+"*"+fileSuffix))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no file %s…%s: it is no folder that --history-dir named", path, filePrefix, fileSuffix)
	}
	slices.Sort(files)
	return files, nil
}

// lines calls each for the lines of r, compressed or not, without their ends. The last one may be
// cut off: then it is left out.
func lines(r io.Reader, each func([]byte) error) (cut bool, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(in)
		if cutOff(err) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		in = bufio.NewReaderSize(z, 64<<10)
	}
	var line []byte
	for {
		piece, err := in.ReadSlice('\n')
		if len(line)+len(piece) > maxLine {
			return false, fmt.Errorf("a line is longer than %d MiB", maxLine>>20)
		}
		line = append(line, piece...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case cutOff(err):
			return len(line) > 0, nil
		case err != nil:
			return false, err
		}
		if text := line[:len(line)-1]; len(strings.TrimSpace(string(text[:min(len(text), 1)]))) > 0 {
			if err := each(text); err != nil {
				return false, err
			}
		}
		line = line[:0]
	}
}

// cutOff: there is no more, whether the end was reached or is missing. A writer that ended in
// the middle of a flush may have left part of a block, which no checksum holds.
func cutOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
