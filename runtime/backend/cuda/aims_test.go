//go:build cuda && cgo

package cuda

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/quantize"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/tensor"
)

// nominal is what makers say of devices: bandwidth of memory, and dense bf16 arithmetic.
var nominal = []struct {
	name              string
	bytes, operations float64 // per second
}{
	{"H200", 4.8e12, 989e12}, {"H100 NVL", 3.9e12, 835e12}, {"H100 PCIe", 2.04e12, 756e12}, {"H100", 3.35e12, 989e12},
	{"A100-SXM4-80GB", 2.04e12, 312e12}, {"A100 80GB PCIe", 1.94e12, 312e12}, {"A100-SXM-64GB", 1.64e12, 312e12}, {"A100", 1.56e12, 312e12},
}

// figure is one thing that was measured, and what was aimed at; 0: nothing.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Aim   float64 `json:"aim,omitempty"`
	// Most says that the aim is met by less, not by more.
	Most bool `json:"most,omitempty"`
}

// report of one device.
type report struct {
	Device    string   `json:"device"`
	Driver    int      `json:"driver"`
	Date      string   `json:"date"`
	Copies    float64  `json:"copy_bytes_per_second"`    // from pinned memory, measured
	Bandwidth float64  `json:"memory_bytes_per_second"`  // of the device, measured by copying
	Nominal   float64  `json:"nominal_bytes_per_second"` // of the device's memory; 0: not known
	Figures   []figure `json:"figures"`
}

func (r *report) add(f figure) { r.Figures = append(r.Figures, f) }

// print the figures, and whether they are as good as was aimed at.
func (r *report) print(out io.Writer) {
	fmt.Fprintf(out, "%s, %s; copies %.1f GB/s, memory %.0f GB/s measured, %.0f nominal\n", r.Device, r.Date, r.Copies/1e9, r.Bandwidth/1e9, r.Nominal/1e9)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range r.Figures {
		aim := ""
		switch {
		case f.Aim == 0:
		case f.Most && f.Value <= f.Aim, !f.Most && f.Value >= f.Aim:
			aim = fmt.Sprintf("aim %.4g: reached", f.Aim)
		default:
			aim = fmt.Sprintf("aim %.4g: missed", f.Aim)
		}
		fmt.Fprintf(w, "%s\t%.4g %s\t%s\n", f.Name, f.Value, f.Unit, aim)
	}
	w.Flush()
}

// sizes of what is measured. An emulated device does the same with next to nothing, so that it works when there is a real one.
type sizes struct {
	large, small   arch.Config
	residents      int
	prompt, tokens int
	batches        []int
	formats        []tensor.DType
}

func llama(layers, hidden, ffn, heads, kvHeads, dim, vocabulary int) arch.Config {
	return arch.Config{
		Architecture: "llama", Layers: layers, Hidden: hidden, FFN: ffn, Heads: heads, KVHeads: kvHeads, HeadDim: dim, TiedOutput: layers < 32,
		Vocabulary: vocabulary, MaxPositions: 8192, NormEps: 1e-5, RopeTheta: 500000, BOS: -1,
	}
}

// TestAims measures a real device against what was aimed at, in some three minutes: with ESTIBA_AIMS, a file for the
// figures as JSON. Elsewhere it is tried with tiny models, whose figures say nothing.
func TestAims(t *testing.T) {
	path := os.Getenv("ESTIBA_AIMS")
	s := sizes{
		large: llama(32, 4096, 14336, 32, 8, 128, 128256), small: llama(16, 2048, 8192, 32, 8, 64, 128256), residents: 20,
		prompt: 2048, tokens: 64, batches: []int{1, 2, 4, 8, 16, 32}, formats: []tensor.DType{tensor.BF16, tensor.Q8_0, tensor.Q4_0, tensor.Q4_K},
	}
	if path == "" {
		s = sizes{
			large: llama(1, 256, 256, 4, 2, 64, 64), small: llama(1, 256, 256, 2, 1, 64, 32), residents: 3,
			prompt: 9, tokens: 2, batches: []int{1, 2}, formats: []tensor.DType{tensor.BF16, tensor.Q4_K},
		}
	}
	all, err := Devices(device.Options{})
	if errors.Is(err, ErrNone) {
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	opened, err := New(all[0], Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	b := opened.(*Backend)
	r := report{Device: b.info.Name, Driver: b.info.Driver, Date: time.Now().UTC().Format(time.DateOnly)}
	r.add(figure{"start: claim the device's memory and load the kernels", time.Since(start).Seconds(), "s", 0, true})
	for _, n := range nominal {
		if r.Nominal == 0 && strings.Contains(r.Device, n.name) {
			r.Nominal = n.bytes
		}
	}
	if r.Bandwidth, err = b.Bandwidth(); err != nil {
		t.Fatal(err)
	}
	if r.Copies, err = b.loader.rate(); err != nil {
		t.Fatal(err)
	}
	defer func() { // whatever fails, what was measured is told
		r.print(os.Stdout)
		if path == "" {
			return
		}
		text, err := json.MarshalIndent(r, "", "\t")
		if err == nil {
			err = os.WriteFile(path, append(text, '\n'), 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}()
	m := &measurement{t: t, b: b, r: &r, sizes: s}
	for i, d := range s.formats {
		m.model(d, i == 0)
	}
	m.residency()
}

// rate at which pinned memory is copied to the device, at best, in bytes per second.
func (l *loader) rate() (float64, error) {
	pinned, a := <-l.host, <-l.lanes
	defer func() { l.host <- pinned; l.lanes <- a }()
	best := 0.0
	for range 6 {
		const copies = 32
		start := time.Now()
		for range copies {
			if err := l.copies.CopyIn(a.staging, pinned[:l.piece]); err != nil {
				return 0, err
			}
		}
		if err := l.copies.Synchronize(); err != nil {
			return 0, err
		}
		best = max(best, float64(copies*l.piece)/time.Since(start).Seconds())
	}
	return best, nil
}

type measurement struct {
	t testing.TB
	b *Backend
	r *report
	sizes
}

// hollow gives weights of a format that all lie in the same memory: numbers as weights have them, over and over.
func (m *measurement) hollow(g *graph.Graph, d tensor.DType) backend.Weights {
	most := int64(0)
	for _, w := range g.Weights {
		n, _ := w.Shape.Elements()
		most = max(most, d.Bytes(n), 4*n/int64(w.Shape[0]))
	}
	draw := make([]float32, 1<<14)
	for i := range draw {
		draw[i] = float32(i*2654435761%4093)/4093*0.04 - 0.02
	}
	pattern := quantize.Append(nil, d, draw)
	memory, err := unix.Mmap(-1, 0, int(most), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { unix.Munmap(memory) })
	for at := 0; at < len(memory); at += len(pattern) {
		copy(memory[at:], pattern)
	}
	ones := make([]float32, 1<<17)
	for i := range ones {
		ones[i] = 1
	}
	vectors := quantize.Append(nil, tensor.F32, ones)
	return func(name string) (tensor.Tensor, error) {
		for _, w := range g.Weights {
			if w.Name != name {
				continue
			}
			n, _ := w.Shape.Elements()
			if len(w.Shape) == 1 {
				return tensor.Tensor{Name: name, DType: tensor.F32, Shape: w.Shape, Data: vectors[:4*n]}, nil
			}
			return tensor.Tensor{Name: name, DType: d, Shape: w.Shape, Data: memory[:d.Bytes(n)]}, nil
		}
		return tensor.Tensor{}, errors.New("no such weight")
	}
}

func (m *measurement) graph(c arch.Config) *graph.Graph {
	g, err := arch.Build(c)
	if err != nil {
		m.t.Fatal(err)
	}
	return g
}

// load a model, for prompts and batches of the sizes.
func (m *measurement) load(g *graph.Graph, w backend.Weights, prompt int) (backend.Program, time.Duration) {
	rows := m.batches[len(m.batches)-1]
	start := time.Now()
	p, err := m.b.Compile(m.t.Context(), g, w, backend.Limits{
		MaxTokens: max(prompt, rows), MaxRows: rows, BlockTokens: 16, Blocks: max(m.prompt/16+2, rows*(m.tokens/16+2)),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return p, time.Since(start)
}

// decode runs so many tokens of so many sequences from an empty context on, and says how many a second.
func (m *measurement) decode(p backend.Program, sequences, tokens int) float64 {
	out := backend.Out{Draws: make([]sampling.Draw, sequences)} // the likeliest tokens, which the device chooses as it does for requests
	per := m.tokens/16 + 2
	var start time.Time
	for at := range tokens + 1 {
		if at == 1 {
			start = time.Now() // after the capture
		}
		var spans []batching.Span
		for s := range sequences {
			blocks := make([]int32, at/16+1)
			for i := range blocks {
				blocks[i] = int32(s*per + i)
			}
			spans = append(spans, batching.Span{Tokens: []int32{int32((7*at + s) % 30)}, Start: at, Blocks: blocks, Rows: batching.LastRow})
		}
		if err := p.Run(m.t.Context(), batching.Batch{Spans: spans}, &out); err != nil {
			m.t.Fatal(err)
		}
		if len(out.Choices) != sequences {
			m.t.Fatalf("%d tokens drawn for %d sequences", len(out.Choices), sequences)
		}
	}
	return float64(sequences*tokens) / time.Since(start).Seconds()
}

// model measures the large one in a format: first with all that is measured of one.
func (m *measurement) model(d tensor.DType, first bool) {
	g := m.graph(m.large)
	w := m.hollow(g, d)
	p, took := m.load(g, w, m.prompt)
	bytes := p.Bytes().Weights
	bus := float64(bytes) / m.r.Copies
	m.r.add(figure{fmt.Sprintf("load %v: over the time of the bus", d), took.Seconds() / bus, "", 1.3, true})
	table := int64(0) // which decoding reads a row of
	if !m.large.TiedOutput {
		n := int64(m.large.Vocabulary) * int64(m.large.Hidden)
		table = d.Bytes(n)
	}
	aim := map[tensor.DType]float64{tensor.BF16: 60, tensor.Q8_0: 60, tensor.Q4_0: 50, tensor.Q4_K: 50}[d]
	for _, n := range m.batches {
		rate := m.decode(p, n, m.tokens)
		m.r.add(figure{fmt.Sprintf("decode %v, batch %d", d, n), rate, "tokens/s", 0, false})
		if n > 1 {
			continue
		}
		read := float64(bytes-table) * rate
		m.r.add(figure{fmt.Sprintf("decode %v: of the bandwidth measured", d), 100 * read / m.r.Bandwidth, "%", 0, false})
		if m.r.Nominal > 0 {
			m.r.add(figure{fmt.Sprintf("decode %v: of the nominal bandwidth", d), 100 * read / m.r.Nominal, "%", aim, false})
		}
	}
	m.prefill(p, g, d)
	if first {
		m.neighbours(g, w, bus)
	}
	start := time.Now()
	if err := p.Close(); err != nil {
		m.t.Error(err)
	}
	m.r.add(figure{fmt.Sprintf("evict %v", d), 1e3 * time.Since(start).Seconds(), "ms", 10, true})
}

// prefill of a prompt in one step.
func (m *measurement) prefill(p backend.Program, g *graph.Graph, d tensor.DType) {
	tokens, blocks := make([]int32, m.prompt), make([]int32, m.prompt/16+1)
	for i := range tokens {
		tokens[i] = int32(i % 30)
	}
	for i := range blocks {
		blocks[i] = int32(i)
	}
	best := time.Hour
	for range 4 {
		var out backend.Out
		start := time.Now()
		if err := p.Run(m.t.Context(), batching.Batch{Spans: []batching.Span{{Tokens: tokens, Blocks: blocks, Rows: batching.LastRow}}}, &out); err != nil {
			m.t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	m.r.add(figure{fmt.Sprintf("prefill %d, %v", m.prompt, d), float64(m.prompt) / best.Seconds(), "tokens/s", 0, false})
	operations := 0.0 // of the matrices of layers, and of attention
	for _, w := range g.Weights {
		if n, _ := w.Shape.Elements(); len(w.Shape) == 2 && w.Shape[0] != m.large.Vocabulary {
			operations += 2 * float64(n) * float64(m.prompt)
		}
	}
	c := m.large
	operations += 2 * float64(c.Layers*c.Heads*c.HeadDim) * float64(m.prompt) * float64(m.prompt)
	for _, n := range nominal {
		if strings.Contains(m.r.Device, n.name) {
			m.r.add(figure{fmt.Sprintf("prefill %v: of the nominal arithmetic", d), 100 * operations / best.Seconds() / n.operations, "%", 40, false})
			break
		}
	}
}

// neighbours: how much slower a small one decodes while a large one loads, and how long that takes then.
func (m *measurement) neighbours(g *graph.Graph, w backend.Weights, bus float64) {
	small := m.graph(m.small)
	q, _ := m.load(small, m.hollow(small, tensor.BF16), m.prompt)
	defer q.Close()
	before := m.decode(q, 1, m.tokens)
	var done atomic.Bool
	var took time.Duration
	loaded := make(chan backend.Program, 1)
	go func() {
		defer close(loaded)
		defer done.Store(true)
		start := time.Now()
		second, err := m.b.Compile(m.t.Context(), g, w, backend.Limits{MaxTokens: 32, MaxRows: 1, BlockTokens: 16, Blocks: 4})
		if err != nil {
			m.t.Error(err)
			return
		}
		took = time.Since(start)
		loaded <- second
	}()
	tokens, start := 0, time.Now()
	for !done.Load() {
		m.decode(q, 1, min(m.tokens, 8))
		tokens += min(m.tokens, 8) + 1
	}
	rate := float64(tokens) / time.Since(start).Seconds()
	for second := range loaded {
		second.Close()
	}
	m.r.add(figure{"decode while a neighbour loads: slower by", 100 * (1 - rate/before), "%", 20, true})
	m.r.add(figure{"load while a neighbour decodes: over the time of the bus", took.Seconds() / bus, "", 1.3, true})
}

// residency holds as many small models as are aimed at, all of which answer.
func (m *measurement) residency() {
	g := m.graph(m.small)
	w := m.hollow(g, tensor.BF16)
	var all []backend.Program
	start := time.Now()
	for range m.residents {
		p, err := m.b.Compile(m.t.Context(), g, w, backend.Limits{MaxTokens: 32, MaxRows: 4, BlockTokens: 16, Blocks: 8})
		if err != nil {
			m.t.Logf("after %d models: %v", len(all), err)
			break
		}
		all = append(all, p)
	}
	loaded := time.Since(start)
	start = time.Now()
	for _, p := range all {
		var out backend.Out
		if err := step(p, &out, 0, []int32{1, 2, 3}, []int32{0}); err != nil {
			m.t.Error(err)
		}
	}
	m.r.add(figure{"models of the 1B shape that are resident", float64(len(all)), "", float64(m.residents), false})
	m.r.add(figure{"to load one of them", loaded.Seconds() / float64(max(len(all), 1)), "s", 0, true})
	m.r.add(figure{"first step of one of them", 1e3 * time.Since(start).Seconds() / float64(max(len(all), 1)), "ms", 0, true})
	for _, p := range all {
		if err := p.Close(); err != nil {
			m.t.Error(err)
		}
	}
}
