package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/backend/named"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/residency"
)

// mostStep is the longest part of a prompt that goes through the model at once, in tokens.
const mostStep = 512

// extent of a device with room for any model: blocks of the KV cache are cut as there.
const extent = 2 << 20

func measure(ctx context.Context, stderr io.Writer, path string, o Options) (Result, error) {
	say := func(format string, values ...any) { fmt.Fprintf(stderr, format+"\n", values...) }
	kernelPath, err := kernels.Best()
	if err != nil {
		return Result{}, err
	}
	if o.Threads == 0 {
		o.Threads = device.Processors(nil)
	} else if warning := tooMany(o.Threads); warning != "" {
		say("%s", warning)
	}
	left := device.Free(nil)
	roof := roof{threads: o.Threads, left: left.Bytes}
	if o.little {
		roof.left = 1
	}
	if left.Bytes > 0 {
		left.Bytes = max(left.Bytes-leastRoof, 1) // memory is read beside the model, too
	}
	var on backend.Backend
	var other accelerator // that computes in the processor's place; nil: none
	if o.Device == "" || named.OnProcessor(o.Device) {
		on, err = cpu.New("cpu-0", cpu.Options{Threads: o.Threads, Path: &kernelPath, Left: left})
	} else if on, err = named.Open(o.Device, o.Threads); err == nil {
		other = on.(accelerator)
		roof.other = other.Bandwidth
	}
	if err != nil {
		return Result{}, err
	}
	defer on.Close()
	r := Result{
		Model: path, Device: on.Name(), CPU: device.Processor(nil), Path: kernelPath.String(), Threads: o.Threads,
		Prompt: o.Prompt, Generate: o.Generate, Repeat: o.Repeat, Batch: []Batch{},
	}
	if _, err := model.Inspect(path); err != nil {
		return Result{}, err // before anything that takes long
	}
	watch := startWatch()
	if other != nil {
		r.Accelerator = other.Model()
		say("how fast the memory of %s is", r.Accelerator)
	} else {
		say("how fast memory can be read, by %s", count(r.Threads, "thread"))
	}
	if size := roof.size(); size < coldRoof && other == nil {
		say("there is memory for %s to read only: it may come from the processor's cache", residency.Bytes(int64(size)))
	}
	if err := roof.measure(); err != nil {
		return Result{}, err
	}
	forgetPeak()

	say("load %s", path)
	start := time.Now()
	m, err := model.OpenForIDs(path)
	if err != nil {
		return Result{}, err
	}
	defer m.Close()
	if m.Graph.Encoder() {
		return Result{}, fmt.Errorf("%s is an encoder (%s), which continues no text: there is nothing to measure", path, m.Architecture)
	}
	s, err := compile(ctx, on, m, o, progress(say))
	if err != nil {
		return Result{}, err
	}
	defer s.program.Close()
	if roof.left > 0 {
		roof.left = max(roof.left-s.program.Bytes().Total(), 1)
	}
	r.LoadSeconds = time.Since(start).Seconds()
	if _, err := s.decode(ctx, 1, 1); err != nil {
		return Result{}, err
	}
	r.FirstTokenSeconds = time.Since(start).Seconds()
	if longest := max(o.Prompt, o.Generate); longest > m.Config.MaxPositions {
		say("the model's context is %d tokens: %d positions say how fast it is, not what it answers", m.Config.MaxPositions, longest)
	}

	if err := s.speeds(ctx, say, o, &r, &roof); err != nil {
		return Result{}, err
	}
	r.ReadBytesPerSecond = roof.best
	if o.Generate > 0 {
		weights, err := weightBytes(m)
		if err != nil {
			return Result{}, err
		}
		r.BytesPerToken = weights + s.kvBytes(o.Generate)
		r.BandwidthFraction = float64(r.BytesPerToken) * r.DecodeTokensPerSecond / r.ReadBytesPerSecond
	}
	if r.Finite = !s.broken; !r.Finite {
		say("%s: %s", path, notFinite)
	}
	r.OthersCPU = watch.others()
	return r, nil
}

// tooMany says of a number of threads that they are more than there are processors for; empty: they are not.
func tooMany(threads int) string {
	there := device.Processors(nil)
	if threads <= there {
		return ""
	}
	why := "GOMAXPROCS allows this process"
	if n := runtime.NumCPU(); there == n {
		why = "this process may use"
	} else if quota, limited := device.Quota(nil); limited && there < n && quota < float64(n) {
		why = fmt.Sprintf("the CPU quota of %.4g allows this process", quota)
	}
	return fmt.Sprintf("%d threads are more than the %s that %s: they wait for each other", threads, count(there, "processor"), why)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// progress of a load that takes long, every two seconds.
func progress(say func(string, ...any)) func(float64) {
	told := time.Now()
	return func(share float64) {
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			say("%.0f %% of the weights", 100*share)
		}
	}
}

// subject is the model under test.
type subject struct {
	program backend.Program
	limits  backend.Limits
	tokens  []int32 // drawn from the vocabulary: what they are changes nothing
	out     backend.Out
	broken  bool // some logits were no finite numbers
}

// accelerator is a device with memory of its own.
type accelerator interface {
	Model() string               // as its maker calls it
	Bandwidth() (float64, error) // of its memory, in bytes per second
}

func compile(ctx context.Context, on backend.Backend, m *model.Model, o Options, progress func(float64)) (*subject, error) {
	cut, err := residency.CutExtent(m.Config, extent)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Path, err)
	}
	most := slices.Max(append([]int{1}, o.Batch...))
	blocks := func(tokens int) int { return (max(tokens, 1) + cut.BlockTokens - 1) / cut.BlockTokens }
	s := &subject{limits: backend.Limits{
		MaxTokens: max(min(o.Prompt, mostStep), most), MaxRows: most,
		BlockTokens: cut.BlockTokens, Blocks: max(blocks(o.Prompt), most*blocks(o.Generate)), Progress: progress,
	}}
	s.program, err = on.Compile(ctx, m.Graph, m.Weights, s.limits)
	if no, ok := errors.AsType[*backend.NoRoomError](err); ok {
		return nil, fmt.Errorf("%s %w: give a smaller --prompt, --generate or --batch, a model of fewer bits a weight, or more memory", m.Path, no)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Path, err)
	}
	draw := rand.New(rand.NewPCG(1, 2)) // the same in every run
	for range max(o.Prompt, o.Generate, 1) {
		s.tokens = append(s.tokens, draw.Int32N(int32(m.Config.Vocabulary)))
	}
	return s, nil
}

// speeds of prompts, of one sequence and of batches, and how fast memory can be read between them.
func (s *subject) speeds(ctx context.Context, say func(string, ...any), o Options, r *Result, roof *roof) error {
	if o.Prompt > 0 {
		say("a prompt of %s, %s and once before", count(o.Prompt, "token"), times(o.Repeat))
		rates, err := repeat(o.Repeat, func() (float64, error) { return s.prompt(ctx, o.Prompt) })
		if err != nil {
			return err
		}
		r.PrefillTokensPerSecond, r.PrefillSpread = median(rates)
	}
	if o.Generate > 0 {
		say("%s of one sequence, %s and once before", count(o.Generate, "token"), times(o.Repeat))
		rates, err := repeat(o.Repeat, func() (float64, error) { return s.decode(ctx, 1, o.Generate) })
		if err != nil {
			return err
		}
		r.DecodeTokensPerSecond, r.DecodeSpread = median(rates)
	}
	r.ResidentBytes, r.AnonymousBytes, r.PeakResidentBytes = resident()
	if err := roof.measure(); err != nil {
		return err
	}
	if o.Generate == 0 {
		return nil
	}
	for _, size := range o.Batch {
		say("%s of %s together, %s and once before", count(o.Generate, "token"), count(size, "sequence"), times(o.Repeat))
		rates, err := repeat(o.Repeat, func() (float64, error) { return s.decode(ctx, size, o.Generate) })
		if err != nil {
			return err
		}
		middle, _ := median(rates)
		r.Batch = append(r.Batch, Batch{size, middle})
	}
	return roof.measure()
}

// prompt of n tokens, at most mostStep in a step, into an empty cache; the logits of its
// last token. It gives tokens per second.
func (s *subject) prompt(ctx context.Context, n int) (float64, error) {
	blocks := s.blocks(0, n)
	start := time.Now()
	for from := 0; from < n; from += mostStep {
		to := min(from+mostStep, n)
		span := batching.Span{Sequence: 1, Tokens: s.tokens[from:to], Start: from, Blocks: blocks}
		if to == n {
			span.Rows, span.Next = batching.LastRow, true
		}
		if err := s.program.Run(ctx, batching.Batch{Spans: []batching.Span{span}}, &s.out); err != nil {
			return 0, err
		}
	}
	took := time.Since(start)
	s.look()
	return float64(n) / took.Seconds(), nil
}

// look at the logits of the last step, when nobody measures.
func (s *subject) look() {
	for _, x := range s.out.Logits {
		if x-x != 0 { // NaN, or infinite
			s.broken = true
			return
		}
	}
}

// decode continues sequences by n tokens each, one in a step, from an empty cache on. It
// gives the tokens per second of all together.
func (s *subject) decode(ctx context.Context, sequences, n int) (float64, error) {
	batch := batching.Batch{Spans: make([]batching.Span, sequences)}
	for i := range batch.Spans {
		batch.Spans[i] = batching.Span{Sequence: uint64(i), Blocks: s.blocks(i, n), Rows: batching.LastRow, Next: true}
	}
	start := time.Now()
	for at := range n {
		for i := range batch.Spans {
			other := (at + i) % n // sequences differ
			batch.Spans[i].Start, batch.Spans[i].Tokens = at, s.tokens[other:other+1]
		}
		if err := s.program.Run(ctx, batch, &s.out); err != nil {
			return 0, err
		}
	}
	took := time.Since(start)
	s.look()
	return float64(sequences*n) / took.Seconds(), nil
}

// blocks of a sequence that has so many tokens, as all others have.
func (s *subject) blocks(sequence, tokens int) []int32 {
	each := (tokens + s.limits.BlockTokens - 1) / s.limits.BlockTokens
	var all []int32
	for b := range each {
		all = append(all, int32(sequence*each+b))
	}
	return all
}

// kvBytes are what a token reads of the cache, as a mean over so many that begin with an empty one.
func (s *subject) kvBytes(tokens int) int64 {
	position := s.program.Bytes().KV / int64(s.limits.Blocks*s.limits.BlockTokens)
	return position * int64(tokens+1) / 2
}

// repeat measures n times, after one that does not count: it finds memory as the others do.
func repeat(n int, once func() (float64, error)) ([]float64, error) {
	var rates []float64
	for i := range n + 1 {
		rate, err := once()
		if err != nil {
			return nil, err
		}
		if i > 0 {
			rates = append(rates, rate)
		}
	}
	return rates, nil
}

func median(rates []float64) (float64, Spread) {
	slices.Sort(rates)
	n := len(rates)
	return (rates[(n-1)/2] + rates[n/2]) / 2, Spread{rates[0], rates[n-1]}
}
