// Package run is the command "estiba run": one model, one prompt, one text, on
// the same parts that serve. Start at Run.
package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/named"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/tokenizer"
)

// Options of one run.
type Options struct {
	Prompt      string  // text, where IDs is nil
	IDs         []int32 // tokens, taken as they are; no tokenizer is needed
	MaxTokens   int     // of output
	Temperature float64 // 0 takes the likeliest token
	Logits      string  // file to write the prompt's logits to; implies Exact
	Exact       bool    // reference arithmetic
	Device      string  // as --device names it; empty: the processor
	Threads     int     // that compute; 0: as many as the processor and the CPU quota allow
	JSON        bool    // one object at the end instead of text as it comes
}

// Result is what --json prints.
type Result struct {
	PromptIDs              []int32 `json:"prompt_ids"`
	IDs                    []int32 `json:"ids"` // without the end token
	Text                   *string `json:"text,omitempty"`
	FinishReason           string  `json:"finish_reason"` // stop or length
	LoadSeconds            float64 `json:"load_seconds"`
	PrefillTokensPerSecond float64 `json:"prefill_tokens_per_second"`
	DecodeTokensPerSecond  float64 `json:"decode_tokens_per_second"` // 0 with fewer than two tokens
}

const (
	blockTokens = 16
	stepRows    = 256 // of logits, or of hidden states, of which every token of a step has one
)

// Run loads the model at path, continues the prompt and writes the text to
// stdout, figures to stderr. When ctx ends it stops with "interrupted".
func Run(ctx context.Context, stdout, stderr io.Writer, path string, o Options) error {
	err := run(ctx, stdout, stderr, path, o)
	if err != nil && ctx.Err() != nil {
		return interrupted{} // wherever that was noticed
	}
	return err
}

// interrupted is context.Canceled in the words of who did it.
type interrupted struct{}

func (interrupted) Error() string { return "interrupted" }
func (interrupted) Unwrap() error { return context.Canceled }

func run(ctx context.Context, stdout, stderr io.Writer, path string, o Options) error {
	logits, err := createLogits(o.Logits)
	if err != nil {
		return err
	}
	defer logits.discard()
	start := time.Now()
	open := model.Open
	if o.IDs != nil {
		open = model.OpenForIDs
	}
	m, err := open(path)
	if err != nil {
		return err
	}
	defer m.Close()
	if m.Config.Encoder {
		return fmt.Errorf("%s: %s makes embeddings, not texts: use 'estiba embed'", path, m.Architecture)
	}
	prompt, err := tokens(m, o)
	if err != nil {
		return err
	}
	room, err := positions(m.Config, len(prompt), o)
	if err != nil {
		return err
	}
	device, err := named.Open(o.Device, o.Threads)
	if err != nil {
		return err
	}
	defer device.Close()
	limits := backend.Limits{
		MaxTokens: device.StepTokens(), MaxRows: 1, BlockTokens: blockTokens, Blocks: (room + blockTokens - 1) / blockTokens,
		Exact: o.Exact || o.Logits != "",
	}
	if o.Logits != "" {
		limits.MaxTokens, limits.MaxRows = stepRows, stepRows
	}
	program, err := device.Compile(ctx, m.Graph, m.Weights, limits)
	if err != nil {
		return noRoom(path, err, "fewer --max-tokens or a shorter prompt")
	}
	defer program.Close()
	result := Result{PromptIDs: prompt, IDs: []int32{}, LoadSeconds: time.Since(start).Seconds()}
	fmt.Fprintf(stderr, "loaded %s in %.2f s\n", path, result.LoadSeconds)

	w := writer{result: &result}
	if o.IDs == nil {
		w.text = m.Tokenizer.Stream(false, prompt...)
	}
	if !o.JSON {
		w.out = stdout
	}
	rows, err := generate(ctx, program, limits, m.Config, room, prompt, o, &w)
	if err != nil {
		return damaged(path, err)
	}
	if err := logits.write(rows, len(prompt), m.Config.Vocabulary); err != nil {
		return err
	}
	if !o.JSON {
		if err := w.end(); err != nil { // before the figures: both may be on one terminal
			return err
		}
	}
	fmt.Fprintf(stderr, "prefill: %s; decode: %s; ended by %s\n",
		figure(len(prompt), result.PrefillTokensPerSecond), figure(len(result.IDs), result.DecodeTokensPerSecond), result.FinishReason)
	if !o.JSON {
		return nil
	}
	return json.NewEncoder(stdout).Encode(result)
}

// damaged says which model gives no numbers.
func damaged(path string, err error) error {
	if errors.Is(err, sampling.ErrNotANumber) {
		return fmt.Errorf("%s: the logits are no finite numbers, so its weights are damaged; get its files again", path)
	}
	return err
}

// noRoom says what to do where there is too little memory for a model; less is what a smaller context takes.
func noRoom(path string, err error, less string) error {
	if no, ok := errors.AsType[*backend.NoRoomError](err); ok {
		return fmt.Errorf("%s %w: give %s, a model of fewer bits a weight, or more memory", path, no, less)
	}
	return err
}

// tokens of the prompt.
func tokens(m *model.Model, o Options) ([]int32, error) {
	if o.IDs != nil {
		return o.IDs, nil
	}
	if m.Tokenizer == nil {
		return nil, fmt.Errorf("%s has no tokenizer files (tokenizer.json or tokenizer.model): give token ids with --ids", m.Path)
	}
	return m.Tokenizer.Encode(o.Prompt, true), nil
}

// positions is how many positions prompt and output need, within the model's own context.
func positions(c arch.Config, prompt int, o Options) (int, error) {
	room := prompt + o.MaxTokens
	if room < prompt || room > c.MaxPositions {
		room = c.MaxPositions
	}
	enough := o.MaxTokens == 0 || o.Logits != "" // without output
	if prompt > room || prompt == room && !enough {
		return 0, fmt.Errorf("%w; shorten the prompt", &engine.TooLongError{Prompt: prompt, MaxTokens: c.MaxPositions, PromptOnly: enough})
	}
	return max(room, 1), nil
}

// generate runs the prompt and its continuation through the engine into w; it
// gives the prompt's logits if they are asked for.
func generate(ctx context.Context, program backend.Program, limits backend.Limits, c arch.Config, room int, prompt []int32, o Options, w *writer) ([]float32, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e := engine.New(engine.Options{Log: slog.New(slog.DiscardHandler)}) // its errors come with the events
	stopped := make(chan error, 1)
	go func() { stopped <- e.Run(ctx) }()
	defer func() {
		cancel()
		<-stopped // nobody uses the program any more
	}()
	err := e.Add(engine.Replica{
		Name: "run", Program: program, Blocks: limits.Blocks, BlockTokens: limits.BlockTokens, MaxTokens: room,
		Vocabulary: c.Vocabulary, Stop: c.EOS, StepTokens: limits.MaxTokens, StepRows: limits.MaxRows, Sequences: 1,
	})
	if err != nil {
		return nil, err
	}
	start := time.Now()
	events, err := e.Submit(ctx, engine.Request{
		Replica: "run", Prompt: prompt, MaxTokens: o.MaxTokens,
		Sampling:     sampling.Params{Temperature: o.Temperature, Seed: rand.Uint64()},
		PromptLogits: o.Logits != "",
		PromptOnly:   o.MaxTokens == 0,
		Finite:       true,
	})
	if err != nil {
		return nil, err
	}
	var first, last time.Time // token, or the end of a text without any
	for event := range events {
		if event.Finish == "" || first.IsZero() {
			last = event.At
		}
		if first.IsZero() {
			first = event.At
		}
		switch {
		case event.Err != nil:
			return nil, event.Err
		case event.Finish == "":
			if err := w.token(event.Token.ID); err != nil {
				return nil, err
			}
			continue
		}
		r := w.result
		r.FinishReason = string(event.Finish)
		r.PrefillTokensPerSecond = rate(len(prompt), first.Sub(start))
		r.DecodeTokensPerSecond = rate(len(r.IDs)-1, last.Sub(first))
		return event.PromptLogits, w.finish()
	}
	return nil, ctx.Err() // the last event may be missing then
}

func rate(tokens int, took time.Duration) float64 {
	if tokens <= 0 || took <= 0 {
		return 0
	}
	return float64(tokens) / took.Seconds()
}

// figure is a number of tokens, with their rate where it could be measured.
func figure(tokens int, perSecond float64) string {
	n := fmt.Sprintf("%d tokens", tokens)
	if tokens == 1 {
		n = "1 token"
	}
	if perSecond == 0 {
		return n
	}
	return fmt.Sprintf("%s, %.1f tokens/s", n, perSecond)
}

// writer collects tokens, and shows them where out is set.
type writer struct {
	result *Result
	text   *tokenizer.Stream // nil: no text, ids are shown
	out    io.Writer
}

func (w *writer) token(id int32) error {
	w.result.IDs = append(w.result.IDs, id)
	if w.text == nil {
		return w.show(fmt.Sprintf("%d ", id))
	}
	return w.add(w.text.Push(id))
}

func (w *writer) finish() error {
	if w.text == nil {
		return nil
	}
	return w.add(w.text.Flush())
}

func (w *writer) add(text string) error {
	if w.result.Text == nil {
		w.result.Text = new(string)
	}
	*w.result.Text += text
	return w.show(text)
}

func (w *writer) show(text string) error {
	if w.out == nil || text == "" {
		return nil
	}
	_, err := io.WriteString(w.out, text)
	return err
}

func (w *writer) end() error { return w.show("\n") }
