// Package synth is the command "estiba synth": models of published shapes with
// random weights, for benchmarks. The files are whole GGUF files that other programs
// can read, with a made-up vocabulary. Start with Run.
package synth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/estiba/estiba/internal/file"
	"github.com/estiba/estiba/runtime/quantize"
	"github.com/estiba/estiba/runtime/tensor"
	"github.com/estiba/estiba/runtime/weights"
)

// Options of the command.
type Options struct {
	Quant tensor.DType // of the matrices; one of Quants
	Out   string       // file to write
	Seed  uint64       // equal seeds give equal weights, before they are rounded to Quant
	JSON  bool
}

// Result is what --json prints.
type Result struct {
	File       string           `json:"file"`
	Shape      string           `json:"shape"`
	Parameters int64            `json:"parameters"`
	Bytes      int64            `json:"bytes"`         // of the file
	Formats    map[string]int64 `json:"weights_bytes"` // by format; a matrix whose rows have no whole blocks of Quant gets another
	Seconds    float64          `json:"seconds"`
}

// Run writes a model of a shape. The file is there when it is whole, never before.
func Run(ctx context.Context, stdout, stderr io.Writer, shape string, o Options) error {
	s, ok := shapes[shape]
	if !ok {
		return fmt.Errorf("no shape %q: give one of %v", shape, Shapes())
	}
	result, err := Write(ctx, stderr, shape, s, o)
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted; nothing was written")
		}
		return err
	}
	if o.JSON {
		return json.NewEncoder(stdout).Encode(result)
	}
	_, err = fmt.Fprintf(stdout, "%s: %s, %d parameters, %d bytes\n", o.Out, shape, result.Parameters, result.Bytes)
	return err
}

// Write is Run for any shape; it reports its progress.
func Write(ctx context.Context, progress io.Writer, name string, s Shape, o Options) (Result, error) {
	start := time.Now()
	parts := s.parts()
	header, infos, err := s.header(name, o.Quant)
	if err != nil {
		return Result{}, err
	}
	last := infos[len(infos)-1]
	result := Result{File: o.Out, Shape: name, Bytes: padded(last.Offset + last.Size), Formats: map[string]int64{}}
	for _, info := range infos {
		n, _ := info.Shape.Elements()
		result.Parameters += n
		result.Formats[info.Stored] += info.Size
	}

	f, err := file.Create(o.Out)
	if err != nil {
		return Result{}, err
	}
	defer f.Discard()
	w := &writer{ctx: ctx, out: f, progress: progress, total: result.Bytes, told: start}
	w.write(header)
	for i, p := range parts {
		w.part(p, infos[i], s, o.Seed)
	}
	if w.err == nil {
		w.err = f.Commit()
	}
	result.Seconds = time.Since(start).Seconds()
	return result, w.err
}

// header is what a file begins with, and where its tensors are.
func (s Shape) header(name string, d tensor.DType) ([]byte, []weights.Info, error) {
	var infos []weights.Info
	for _, p := range s.parts() {
		infos = append(infos, p.info(d))
	}
	header, err := weights.GGUFHeader(s.fields(name, d), infos)
	return header, infos, err
}

// Hollow writes a file of a shape whose weights are a hole, which reads as zeros: it has
// all that headers tell, and takes no room on a disk.
func Hollow(path, shape string, d tensor.DType) error {
	s, ok := shapes[shape]
	if !ok {
		return fmt.Errorf("no shape %q: give one of %v", shape, Shapes())
	}
	header, infos, err := s.header(shape, d)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, header, 0o644); err != nil {
		return err
	}
	last := infos[len(infos)-1]
	return os.Truncate(path, padded(last.Offset+last.Size))
}

func padded(n int64) int64 {
	return (n + weights.GGUFAlignment - 1) / weights.GGUFAlignment * weights.GGUFAlignment
}

// writer streams a file; its first error stays.
type writer struct {
	ctx      context.Context
	out      io.Writer
	progress io.Writer
	at       int64 // bytes written
	total    int64
	told     time.Time // of the last progress
	err      error
}

func (w *writer) write(b []byte) {
	if w.err == nil {
		w.err = w.ctx.Err()
	}
	if w.err != nil {
		return
	}
	_, w.err = w.out.Write(b)
	w.at += int64(len(b))
	if time.Since(w.told) > 2*time.Second {
		w.told = time.Now()
		fmt.Fprintf(w.progress, "%d of %d MB written\n", w.at/1e6, w.total/1e6)
	}
}

// stretch is how many numbers are made at once, by one goroutine.
const stretch = 1 << 18

// part writes a tensor, stretch by stretch, as many at once as there are processors.
func (w *writer) part(p part, info weights.Info, s Shape, seed uint64) {
	rows := max(p.rows, 1)
	each := max(1, stretch/p.cols) // rows
	encoded := make([][]byte, runtime.GOMAXPROCS(0))
	numbers := make([][]float32, len(encoded))
	for from := 0; from < rows && w.err == nil; from += each * len(encoded) {
		var making sync.WaitGroup
		for i := range encoded {
			encoded[i] = encoded[i][:0]
			if first := from + i*each; first < rows {
				making.Go(func() {
					n := min(each, rows-first) * p.cols
					if cap(numbers[i]) < n {
						numbers[i] = make([]float32, n)
					}
					x := numbers[i][:n]
					p.numbers(x, s, seed, uint64(first))
					encoded[i] = quantize.Append(encoded[i], info.DType, x)
				})
			}
		}
		making.Wait()
		for _, b := range encoded {
			w.write(b)
		}
	}
	w.write(make([]byte, padded(info.Size)-info.Size))
}

// numbers are those of whole rows, the first of which is given. They depend on
// seed, name and place alone.
func (p part) numbers(x []float32, s Shape, seed, first uint64) {
	deviation := 0.02
	switch p.fill {
	case ones:
		for i := range x {
			x[i] = 1
		}
		return
	case wavelengths:
		copy(x, s.divisors())
		return
	case random:
		deviation = 1 / math.Sqrt(float64(p.cols))
	}
	h := fnv.New64a()
	io.WriteString(h, p.name)
	r := rand.NewPCG(seed^first*0x9e3779b97f4a7c15, h.Sum64())
	// Even between -√3 and √3 deviations: two numbers of 32 bits from each draw.
	scale := float32(math.Sqrt(3) * deviation / (1 << 31))
	for i := 0; i < len(x); i += 2 {
		bits := r.Uint64()
		x[i] = float32(int32(bits)) * scale
		if i+1 < len(x) {
			x[i+1] = float32(int32(bits>>32)) * scale
		}
	}
}
