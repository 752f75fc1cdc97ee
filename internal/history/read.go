package history

import (
	"bufio"
	"compress/gzip"
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

// Read calls each for the decisions of a history, the oldest first, until one
// returns an error. It is what Fetch gave, a file of --history-dir, or their lines
// put together. One that was cut off, as by the end of its writer, is read up to
// there. What is read may come from anywhere: wrong lines are errors, and memory
// is bounded.
func Read(r io.Reader, each func(Decision) error) error {
	var d decoder
	n := 0
	return lines(r, func(line []byte) error {
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
}

// ReadPath reads a file, or all that are in a folder.
func ReadPath(path string, each func(Decision) error) error {
	files, err := historyFiles(path)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := readFile(f, each); err != nil {
			return fmt.Errorf("read %s: %w", f, err)
		}
	}
	return nil
}

func readFile(path string, each func(Decision) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return Read(f, each)
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
func lines(r io.Reader, each func([]byte) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(in)
		if cutOff(err) {
			return nil
		}
		if err != nil {
			return err
		}
		in = bufio.NewReaderSize(z, 64<<10)
	}
	var line []byte
	for {
		piece, err := in.ReadSlice('\n')
		if len(line)+len(piece) > maxLine {
			return fmt.Errorf("a line is longer than %d MiB", maxLine>>20)
		}
		line = append(line, piece...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case cutOff(err):
			return nil
		case err != nil:
			return err
		}
		if text := line[:len(line)-1]; len(strings.TrimSpace(string(text[:min(len(text), 1)]))) > 0 {
			if err := each(text); err != nil {
				return err
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
