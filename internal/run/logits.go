package run

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
)

// logitsFile is a safetensors file in the making, beside the file that it
// replaces once it is whole.
type logitsFile struct {
	path string
	file *os.File
}

// createLogits finds out before the work whether path can be written. An empty
// path is no file.
func createLogits(path string) (*logitsFile, error) {
	if path == "" {
		return &logitsFile{}, nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, fmt.Errorf("write logits to %s: %w", path, err)
	}
	return &logitsFile{path, f}, nil
}

// write makes the file whole: tensor "logits", float32 [positions, vocabulary].
func (l *logitsFile) write(logits []float32, positions, vocabulary int) error {
	if l.file == nil {
		return nil
	}
	if len(logits) != positions*vocabulary {
		return fmt.Errorf("write logits to %s: %d numbers for %d positions of %d", l.path, len(logits), positions, vocabulary)
	}
	header := fmt.Sprintf(`{"logits":{"dtype":"F32","shape":[%d,%d],"data_offsets":[0,%d]}}`, positions, vocabulary, 4*len(logits))
	for len(header)%8 != 0 { // the data begins at a multiple of 8
		header += " "
	}
	w := bufio.NewWriter(l.file)
	w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(header))))
	w.WriteString(header)
	for _, x := range logits {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], math.Float32bits(x))
		w.Write(b[:])
	}
	err := w.Flush() // the first error of all writes
	if err == nil {
		err = l.file.Chmod(0o644)
	}
	if err == nil {
		err = l.file.Close()
	}
	if err == nil {
		err = os.Rename(l.file.Name(), l.path)
	}
	if err != nil {
		return fmt.Errorf("write logits to %s: %w", l.path, err)
	}
	l.file = nil
	return nil
}

// discard removes a file that was not made whole.
func (l *logitsFile) discard() {
	if l.file != nil {
		l.file.Close()
		os.Remove(l.file.Name())
	}
}
