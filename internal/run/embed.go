package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/named"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/model"
)

// EmbedOptions of one embedding.
type EmbedOptions struct {
	Text    string  // where IDs is nil
	IDs     []int32 // tokens, taken as they are; no tokenizer is needed
	Pooling string  // "mean", "cls" or "last"; empty: as the checkpoint says
	Exact   bool    // reference arithmetic
	Device  string  // as --device names it; empty: the processor
	Threads int     // that compute; 0: as many as the processor and the CPU quota allow
	JSON    bool    // one object instead of numbers
}

// Embedding is what --json prints.
type Embedding struct {
	Embedding []float32 `json:"embedding"` // of Euclidean length 1
	IDs       []int32   `json:"ids"`
	Pooling   string    `json:"pooling"`
}

// Embed loads the model at path and writes a text's embedding to stdout.
func Embed(ctx context.Context, stdout io.Writer, path string, o EmbedOptions) error {
	result, err := embed(ctx, path, o)
	if err != nil && ctx.Err() != nil {
		return interrupted{} // wherever that was noticed
	}
	if err != nil {
		return err
	}
	if o.JSON {
		return json.NewEncoder(stdout).Encode(result)
	}
	numbers := make([]string, len(result.Embedding))
	for i, x := range result.Embedding {
		numbers[i] = fmt.Sprint(x)
	}
	_, err = fmt.Fprintln(stdout, strings.Join(numbers, " "))
	return err
}

func embed(ctx context.Context, path string, o EmbedOptions) (Embedding, error) {
	open := model.Open
	if o.IDs != nil {
		open = model.OpenForIDs
	}
	m, err := open(path)
	if err != nil {
		return Embedding{}, err
	}
	defer m.Close()
	name := o.Pooling
	if name == "" {
		name = m.DefaultPooling()
	}
	pooling, ok := engine.Poolings[name]
	if !ok {
		return Embedding{}, fmt.Errorf("%s: pooling %q is not supported; choose one of %s with --pooling",
			path, name, strings.Join(slices.Sorted(maps.Keys(engine.Poolings)), ", "))
	}
	ids, err := tokens(m, Options{Prompt: o.Text, IDs: o.IDs})
	if err != nil {
		return Embedding{}, err
	}
	if len(ids) == 0 && o.IDs == nil {
		return Embedding{}, fmt.Errorf("--text is %q, and %s puts no special tokens around a text: %w", o.Text, path, ErrNoText)
	}
	vector, err := pool(ctx, m, ids, pooling, o)
	return Embedding{Embedding: vector, IDs: ids, Pooling: name}, damaged(path, noRoom(path, err, "a shorter text"))
}

// ErrNoText says that a text has no tokens, so that there is nothing to pool. Where the tokenizer
// puts special tokens around a text, an empty one has these, and their embedding.
var ErrNoText = errors.New("give a text")

// pool runs a prompt through an engine of its own for its embedding.
func pool(ctx context.Context, m *model.Model, ids []int32, pooling engine.Pooling, o EmbedOptions) ([]float32, error) {
	device, err := named.Open(o.Device, o.Threads)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	c := m.Config
	if len(ids) > c.MaxPositions {
		return nil, fmt.Errorf("the text has %d tokens, and the model takes at most %d; shorten it", len(ids), c.MaxPositions)
	}
	room := len(ids)
	limits := backend.Limits{MaxTokens: max(room, 1), BlockTokens: blockTokens, Exact: o.Exact}
	if !c.Encoder {
		limits.MaxTokens = min(limits.MaxTokens, stepRows)
		room = min(room+1, c.MaxPositions)
		limits.Blocks = (room + blockTokens - 1) / blockTokens
	}
	limits.MaxRows = limits.MaxTokens
	program, err := device.Compile(ctx, m.Graph, m.Weights, limits)
	if err != nil {
		return nil, err
	}
	defer program.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e := engine.New(engine.Options{Log: slog.New(slog.DiscardHandler)}) // its errors come with the events
	stopped := make(chan error, 1)
	go func() { stopped <- e.Run(ctx) }()
	defer func() {
		cancel()
		<-stopped // nobody uses the program any more
	}()
	err = e.Add(engine.Replica{
		Name: "embed", Program: program, Blocks: limits.Blocks, BlockTokens: limits.BlockTokens, Encoder: c.Encoder,
		MaxTokens: max(room, 1), Vocabulary: c.Vocabulary, Hidden: c.Hidden, StepTokens: limits.MaxTokens, StepRows: limits.MaxRows, Sequences: 1,
	})
	if err != nil {
		return nil, err
	}
	events, err := e.Submit(ctx, engine.Request{Replica: "embed", Prompt: ids, Pooling: pooling})
	if err != nil {
		return nil, err
	}
	for event := range events {
		if event.Finish != "" {
			return event.Embedding, event.Err
		}
	}
	return nil, ctx.Err() // the last event may be missing then
}
