//go:build cuda && cgo

package cuda

import (
	"context"
	"reflect"
	"testing"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/backendtest"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/tensor"
)

// undrawn gives logits, whoever would have tokens drawn.
type undrawn struct{ backend.Program }

func (p undrawn) Run(ctx context.Context, b batching.Batch, out *backend.Out) error {
	out.Draws = out.Draws[:0]
	return p.Program.Run(ctx, b, out)
}

// TestEngineDraws: a request's tokens are the same whether the device draws them or the host.
func TestEngineDraws(t *testing.T) {
	b := opened(t, 40)
	g := small(t, 1)
	p, err := b.Compile(t.Context(), g, backendtest.Random(g, tensor.F32, 1), inSlab)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	texts := func(p backend.Program) (all [][]sampling.Token) {
		ctx, cancel := context.WithCancel(t.Context())
		e := engine.New(engine.Options{Extents: 20, Discard: b.Discard})
		ended := make(chan error)
		go func() { ended <- e.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		err := e.Add(engine.Replica{
			Name: "m", Program: p, PerExtent: inSlab.PerExtent, BlockTokens: inSlab.BlockTokens, Floor: 2, MaxTokens: 64, Vocabulary: 300, Hidden: 256,
			StepTokens: inSlab.MaxTokens, StepRows: inSlab.MaxRows,
		})
		if err != nil {
			t.Fatal(err)
		}
		var events []<-chan engine.Event
		for i, s := range []sampling.Params{{}, {Temperature: 1, Seed: 5, TopP: 0.9}, {Temperature: 0.8, Seed: 6, Logprobs: true}, {Presence: 1}} {
			c, err := e.Submit(ctx, engine.Request{Replica: "m", Prompt: []int32{int32(i), 2, 3}, MaxTokens: 6 + 2*i, Sampling: s}) // the last one is the host's in either case
			if err != nil {
				t.Fatal(err)
			}
			events = append(events, c)
		}
		for _, c := range events {
			var text []sampling.Token
			for ev := range c {
				if ev.Err != nil {
					t.Fatal(ev.Err)
				}
				if ev.Finish == "" {
					ev.Token.Logprob = 0 // TestDraws compares it
					text = append(text, ev.Token)
				}
			}
			all = append(all, text)
		}
		return all
	}
	if drawn, want := texts(p), texts(undrawn{p}); !reflect.DeepEqual(drawn, want) {
		t.Errorf("drawn on the device:\n%v, want\n%v", drawn, want)
	}
}
