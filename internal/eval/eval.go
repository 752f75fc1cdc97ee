// Package eval is the command "estiba eval": what a model loses against a
// reference on a text. Start with Run.
package eval

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/estiba/estiba/internal/file"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/backend/named"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/eval"
	"github.com/estiba/estiba/runtime/model"
)

// Options of the command.
type Options struct {
	Reference string // model to compare with: a folder or a .gguf file
	Text      string // file
	Device    string // on which the model computes, as --device names it; empty: the processor, as the reference always
	Threads   int    // that compute; 0: as many as the processor and the CPU quota allow
	AsServed  bool   // the model computes as it serves; otherwise, and the reference always, exactly
	JSON      bool
}

// Result is what --json prints.
type Result struct {
	eval.Result
	Windows int     `json:"windows"` // that the text was cut into
	Seconds float64 `json:"seconds"`
}

// blockTokens is how many positions a KV block has. The number changes nothing.
const blockTokens = 16

// maxText bounds the text, in bytes.
const maxText = 64 << 20

// Run compares the model at path with the reference and writes the result to stdout, progress to stderr.
func Run(ctx context.Context, stdout, stderr io.Writer, path string, o Options) error {
	result, err := run(ctx, stderr, path, o)
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil {
		return err
	}
	if o.JSON {
		return json.NewEncoder(stdout).Encode(result)
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for _, row := range [][2]any{
		{"Perplexity", fmt.Sprintf("%.4f", result.Perplexity)},
		{"Reference perplexity", fmt.Sprintf("%.4f", result.ReferencePerplexity)},
		{"Mean KL", fmt.Sprintf("%.4g nats", result.MeanKL)},
		{"Largest KL", fmt.Sprintf("%.4g nats", result.MaxKL)},
		{"Same top token", fmt.Sprintf("%.2f %%", 100*result.SameTop)},
		{"Positions", result.Positions},
	} {
		fmt.Fprintf(w, "%v:\t%v\n", row[0], row[1])
	}
	return w.Flush()
}

func run(ctx context.Context, stderr io.Writer, path string, o Options) (Result, error) {
	start := time.Now()
	text, err := file.Read(ctx, o.Text, maxText)
	if err != nil {
		return Result{}, err
	}
	m, err := open(path)
	if err != nil {
		return Result{}, err
	}
	defer m.Close()
	r, err := open(o.Reference)
	if err != nil {
		return Result{}, err
	}
	defer r.Close()
	front, tokens, err := tokenize(m, r, string(text))
	if err != nil {
		return Result{}, err
	}
	cut, err := windows(front, tokens, min(m.Config.MaxPositions, r.Config.MaxPositions))
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", o.Text, err)
	}

	processor, err := cpu.New("cpu-0", cpu.Options{Threads: o.Threads, Left: device.Rest(nil)})
	if err != nil {
		return Result{}, err
	}
	defer processor.Close()
	limits := limits(cut, m.Config.Vocabulary)
	reference, err := compile(ctx, processor, r, limits, true)
	if err != nil {
		return Result{}, err
	}
	defer reference.close()
	on := backend.Backend(processor)
	if o.Device != "" && !named.OnProcessor(o.Device) {
		if on, err = named.Open(o.Device, o.Threads); err != nil {
			return Result{}, err
		}
		defer on.Close()
	}
	judged, err := compile(ctx, on, m, limits, !o.AsServed)
	if err != nil {
		return Result{}, err
	}
	defer judged.close()

	var sums eval.Sums
	total, done, told := len(tokens), 0, time.Now()
	for _, window := range cut {
		for from := 0; from < len(window)-1; from += limits.MaxTokens {
			to := min(from+limits.MaxTokens, len(window)-1)
			a, err := judged.logits(ctx, window[from:to], from)
			if err != nil {
				return Result{}, err
			}
			b, err := reference.logits(ctx, window[from:to], from)
			if err != nil {
				return Result{}, err
			}
			v := m.Config.Vocabulary
			for i, next := range window[from+1 : to+1] {
				sums.Add(a[i*v:(i+1)*v], b[i*v:(i+1)*v], next)
			}
			done += to - from
			if time.Since(told) > 2*time.Second {
				told = time.Now()
				fmt.Fprintf(stderr, "%d of %d tokens\n", done, total)
			}
		}
	}
	result := Result{sums.Result(), len(cut), time.Since(start).Seconds()}
	if !result.Finite() {
		return Result{}, fmt.Errorf("compare %s with %s: the logits of one of them are no finite numbers: its weights are damaged", m.Path, r.Path)
	}
	return result, nil
}

// open opens a model that gives logits.
func open(path string) (*model.Model, error) {
	m, err := model.Open(path)
	if err != nil {
		return nil, err
	}
	if m.Graph.Encoder() {
		m.Close()
		return nil, fmt.Errorf("%s is an encoder (%s): it predicts no next token, so there is nothing to compare", path, m.Architecture)
	}
	return m, nil
}

// tokenize gives the tokens of a text, and what both models want in front of it.
// It fails unless they share a vocabulary.
func tokenize(m, r *model.Model, text string) (front, tokens []int32, err error) {
	if a, b := m.Config.Vocabulary, r.Config.Vocabulary; a != b {
		return nil, nil, fmt.Errorf("%s has a vocabulary of %d tokens, the reference %s one of %d: compare models that share one", m.Path, a, r.Path, b)
	}
	for _, one := range []*model.Model{m, r} {
		if one.Tokenizer == nil {
			continue // it takes the other's word
		}
		f, t := split(one.Tokenizer.Encode(text, true), one.Tokenizer.Encode(text, false))
		if tokens != nil && !(slices.Equal(f, front) && slices.Equal(t, tokens)) {
			return nil, nil, fmt.Errorf("%s and the reference %s turn the text into other tokens (%s): compare models that share a vocabulary",
				m.Path, r.Path, difference(append(front, tokens...), append(f, t...)))
		}
		front, tokens = f, t
	}
	if m.Tokenizer == nil && r.Tokenizer == nil {
		return nil, nil, fmt.Errorf("neither %s nor the reference %s has a tokenizer, so the text cannot be read", m.Path, r.Path)
	}
	for _, id := range append(slices.Clone(front), tokens...) {
		if int(id) >= m.Config.Vocabulary {
			return nil, nil, fmt.Errorf("%s: its tokenizer gives token %d, but the model has %d: the tokenizer is of another model", m.Path, id, m.Config.Vocabulary)
		}
	}
	return front, tokens, nil
}

// split gives what stands in front of plain in full; what is behind is left out.
func split(full, plain []int32) (front, tokens []int32) {
	for i := 0; i+len(plain) <= len(full); i++ {
		if slices.Equal(full[i:i+len(plain)], plain) {
			return full[:i:i], plain
		}
	}
	return nil, plain
}

// difference says where two lists of tokens part.
func difference(a, b []int32) string {
	at := 0
	for at < min(len(a), len(b)) && a[at] == b[at] {
		at++
	}
	one := func(ids []int32) string {
		if at == len(ids) {
			return "the end"
		}
		return fmt.Sprint(ids[at])
	}
	return fmt.Sprintf("%d and %d of them; number %d is %s and %s", len(a), len(b), at, one(a), one(b))
}

// windows cuts tokens so that each window, front included, has at most context
// tokens, and every token but the first of all is predicted once.
func windows(front, tokens []int32, context int) ([][]int32, error) {
	if len(front)+len(tokens) < 2 || len(tokens) == 0 {
		return nil, errors.New("the text has no token to predict: give a longer one")
	}
	if context < len(front)+1 || context < 2 {
		return nil, fmt.Errorf("a context of %d tokens has no room for a token to predict", context)
	}
	var all [][]int32
	for at := 0; at < len(tokens); {
		if len(front) == 0 && at > 0 {
			at-- // the last one is what the next is predicted from
		}
		end := min(at+context-len(front), len(tokens))
		all = append(all, append(slices.Clone(front), tokens[at:end]...))
		at = end
	}
	return all, nil
}

// limits of programs for these windows. A step has some 64 MB of logits at most.
func limits(cut [][]int32, vocabulary int) backend.Limits {
	longest := 0
	for _, w := range cut {
		longest = max(longest, len(w))
	}
	rows := min(max(8, 16<<20/vocabulary), 256, max(longest, 1))
	return backend.Limits{MaxTokens: rows, MaxRows: rows, BlockTokens: blockTokens, Blocks: (longest + blockTokens - 1) / blockTokens}
}

// side is one of the two models.
type side struct {
	program backend.Program
	blocks  []int32 // all there are
	out     backend.Out
}

func compile(ctx context.Context, on backend.Backend, m *model.Model, limits backend.Limits, exact bool) (*side, error) {
	limits.Exact = exact
	program, err := on.Compile(ctx, m.Graph, m.Weights, limits)
	if no, ok := errors.AsType[*backend.NoRoomError](err); ok {
		return nil, fmt.Errorf("%s %w: give a shorter text, a model of fewer bits a weight, or more memory", m.Path, no)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Path, err)
	}
	s := &side{program: program}
	for b := range limits.Blocks {
		s.blocks = append(s.blocks, int32(b))
	}
	return s, nil
}

// logits [len(tokens), vocabulary] of tokens that stand at start and after; those before have been run.
func (s *side) logits(ctx context.Context, tokens []int32, start int) ([]float32, error) {
	err := s.program.Run(ctx, batching.Batch{Spans: []batching.Span{{
		Sequence: 1, Tokens: tokens, Start: start, Blocks: s.blocks, Rows: batching.AllRows,
	}}}, &s.out)
	return s.out.Logits, err
}

func (s *side) close() { s.program.Close() }
