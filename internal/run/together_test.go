package run_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/model"
)

// TestEightAtOnce asks one engine for the eight cases together, twice over (the second time
// from cached prefixes), with room for not quite all of them: each text is the one
// that it has alone.
func TestEightAtOnce(t *testing.T) {
	m, err := model.Open(fixture.Shared(t, "models/stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	device, err := cpu.New("cpu-0", cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	limits := backend.Limits{MaxTokens: 24, MaxRows: 8, BlockTokens: 16, Blocks: 50}
	program, err := device.Compile(context.Background(), m.Graph, m.Weights, limits)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()

	e := engine.New(engine.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { e.Run(ctx) })
	defer running.Wait()
	defer cancel()
	err = e.Add(engine.Replica{
		Name: "m", Program: program, Blocks: limits.Blocks, BlockTokens: limits.BlockTokens, MaxTokens: m.Config.MaxPositions,
		Vocabulary: m.Config.Vocabulary, Stop: m.Config.EOS, StepTokens: limits.MaxTokens, StepRows: limits.MaxRows,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var clients sync.WaitGroup
		for _, c := range cases(t) {
			events, err := e.Submit(ctx, engine.Request{Replica: "m", Prompt: c.PromptIDs, MaxTokens: c.Max})
			if err != nil {
				t.Fatal(err)
			}
			clients.Go(func() {
				var ids []int32
				for event := range events {
					if event.Err != nil {
						t.Errorf("%s: %v", c.Name, event.Err)
					}
					if event.Finish == "" {
						ids = append(ids, event.Token.ID)
					}
				}
				if want := c.Greedy["f32"].IDs; !slices.Equal(ids, want) {
					t.Errorf("%s: got %v, want %v", c.Name, ids, want)
				}
			})
		}
		clients.Wait()
	}
}
