package server

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"net/http"

	"github.com/estiba/estiba/runtime/engine"
)

const (
	maxInputs = 2048 // of one request for embeddings
	// ahead is how many inputs of one request are with the engine at a time, so that a long
	// list leaves room in its queue for others.
	ahead = 16
)

// embedding asks for vectors of texts.
type embedding struct {
	model      string
	inputs     []prompt
	around     bool // special tokens around a text
	base64     bool
	dimensions int // 0: the model's
}

func parseEmbeddings(body []byte) (asked, *apiError) {
	f := parseFields(embeddings, body)
	e := &embedding{model: f.modelName(), inputs: f.prompts("input", maxInputs), around: f.boolean("add_special_tokens", true)}
	switch format := f.text("encoding_format"); format {
	case "", "float":
	case "base64":
		e.base64 = true
	default:
		f.fail("encoding_format", "encoding_format must be float or base64")
	}
	f.ignored()
	e.dimensions = f.integer("dimensions", 1, math.MaxInt32, 0)
	return e, f.finish()
}

func (e *embedding) modelName() string { return e.model }

func (e *embedding) answer(ctx context.Context, w http.ResponseWriter, c call) *apiError {
	pooling, ok := engine.Poolings[c.Pooling]
	if !ok {
		return invalid("model", "The model's embeddings are pooled as its files say, by %s, which is not supported.", c.Pooling)
	}
	prompts, bad := e.encode(c)
	if bad != nil {
		return bad
	}
	var (
		data    = make([]any, len(prompts))
		waiting []<-chan engine.Event
		tokens  int
	)
	for i, submitted := 0, 0; i < len(prompts); i++ {
		for ; submitted < len(prompts) && submitted < i+ahead; submitted++ {
			events, err := c.Engine.Submit(ctx, engine.Request{Replica: c.Replica, Tenant: c.tenant, Prompt: prompts[submitted], Pooling: pooling})
			if errors.Is(err, engine.ErrQueueFull) && submitted > i {
				break // there is a place once one of its own has ended
			}
			if err != nil { // those before it end with ctx
				bad := submitError(err)
				if bad.Param == "prompt" {
					bad.Param = "input"
				}
				bad.elsewhere = bad.elsewhere && i == 0
				return bad
			}
			waiting = append(waiting, events)
		}
		vector, bad, gone := wait(ctx, waiting[i])
		took := times{of: c.Measures, arrived: c.arrived}
		switch {
		case gone:
			took.end(len(prompts[i]), 0, "abort")
			return nil
		case bad != nil:
			took.end(len(prompts[i]), 0, "error")
			bad.elsewhere = bad.elsewhere && i == 0
			return bad
		case e.dimensions != 0 && e.dimensions != len(vector):
			return invalid("dimensions", "The model's embeddings have %d dimensions, and are not made to be cut to %d. Leave dimensions out.", len(vector), e.dimensions)
		}
		took.end(len(prompts[i]), 0, "stop")
		tokens += len(prompts[i])
		data[i] = map[string]any{"object": "embedding", "index": i, "embedding": e.written(vector)}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"object": "list", "data": data, "model": e.model,
		"usage": map[string]int{"prompt_tokens": tokens, "total_tokens": tokens},
	})
	return nil
}

// encode turns the inputs into ids; ids need no tokenizer.
func (e *embedding) encode(c call) ([][]int32, *apiError) {
	for _, p := range e.inputs {
		if p.ids == nil && c.Tokenizer == nil {
			return nil, noTokenizer(e.model)
		}
	}
	return encodeAll(c.Loaded, e.inputs, e.around), nil
}

// wait reads a request to its end: a vector, an error, or nothing since the client has gone.
func wait(ctx context.Context, events <-chan engine.Event) (vector []float32, bad *apiError, gone bool) {
	for {
		select {
		case ev, ok := <-events:
			switch {
			case !ok:
				return nil, nil, true
			case ev.Embedding != nil:
				return ev.Embedding, nil, false
			case ev.Err != nil && ctx.Err() == nil:
				bad := stepError(ev.Err)
				bad.elsewhere = bad.elsewhere && ev.Started.IsZero()
				return nil, bad, false
			}
		case <-ctx.Done():
			return nil, nil, true
		}
	}
}

// written is a vector as JSON has it.
func (e *embedding) written(vector []float32) any {
	if !e.base64 {
		return vector
	}
	raw := make([]byte, 0, 4*len(vector))
	for _, x := range vector {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	return base64.StdEncoding.EncodeToString(raw)
}
