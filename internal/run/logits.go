package run

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/estiba/estiba/internal/file"
)

// logitsFile is the safetensors file for a prompt's logits; nil: none is wanted.
type logitsFile struct{ *file.Replacement }

// createLogits finds out before the work whether path can be written. An empty
// path is no file.
func createLogits(path string) (logitsFile, error) {
	if path == "" {
		return logitsFile{}, nil
	}
	f, err := file.Create(path)
	if err != nil {
		return logitsFile{}, err
	}
	return logitsFile{f}, nil
}

// write makes the file whole: tensor "logits", float32 [positions, vocabulary].
func (l logitsFile) write(logits []float32, positions, vocabulary int) error {
	if l.Replacement == nil {
		return nil
	}
	if len(logits) != positions*vocabulary {
		return fmt.Errorf("write logits: %d numbers for %d positions of %d", len(logits), positions, vocabulary)
	}
	header := fmt.Sprintf(`{"logits":{"dtype":"F32","shape":[%d,%d],"data_offsets":[0,%d]}}`, positions, vocabulary, 4*len(logits))
	for len(header)%8 != 0 { // the data begins at a multiple of 8
		header += " "
	}
	w := bufio.NewWriter(l)
	w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(header))))
	w.WriteString(header)
	for _, x := range logits {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], math.Float32bits(x))
		w.Write(b[:])
	}
	if err := w.Flush(); err != nil { // the first error of all writes
		return err
	}
	return l.Commit()
}

// discard removes a file that was not made whole.
func (l logitsFile) discard() {
	if l.Replacement != nil {
		l.Discard()
	}
}
