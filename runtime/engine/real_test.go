package engine

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/sampling"
)

// golden is a case of an independent program's greedy texts.
type golden struct {
	Name         string
	PromptIDs    []int32 `json:"prompt_ids"`
	MaxNewTokens int     `json:"max_new_tokens"`
	Greedy       struct {
		F32 struct {
			IDs    []int32
			Finish string
		}
	}
}

// startReal runs a trained model on the CPU backend. Few blocks make them preempt each other.
func startReal(t *testing.T, path string, blocks int) *Engine {
	m, err := model.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := cpu.New("cpu-0", cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	limits := backend.Limits{MaxTokens: 32, MaxRows: 8, BlockTokens: 16, Blocks: blocks, Exact: true}
	p, err := b.Compile(t.Context(), m.Graph, m.Weights, limits)
	if err != nil {
		t.Fatal(err)
	}
	e := New(Options{})
	if err := e.Add(Replica{
		Name: "m", Program: p, Blocks: blocks, BlockTokens: 16, MaxTokens: min(512, 16*blocks), Vocabulary: m.Config.Vocabulary,
		Stop: m.Config.EOS, StepTokens: 32, StepRows: 8, Sequences: 8,
	}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
		if err := e.Remove(context.Background(), "m"); err != nil {
			t.Error(err)
		}
		p.Close()
		b.Close()
		m.Close()
	})
	return e
}

func goldens(t *testing.T) (cases []golden) {
	data, err := os.ReadFile(fixture.Shared(t, "models/stories260K/cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &cases); err != nil || len(cases) == 0 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	return cases
}

// TestGolden: all cases at once, with so few blocks that some are preempted,
// give the ids of the reference, which computed each alone.
func TestGolden(t *testing.T) {
	cases := goldens(t)
	for name, blocks := range map[string]int{"room for all": 256, "room for few": 24} {
		t.Run(name, func(t *testing.T) {
			e := startReal(t, fixture.Model("stories260K/hf-f32"), blocks)
			var streams []<-chan Event
			for _, c := range cases {
				streams = append(streams, submit(t, e, t.Context(), Request{Replica: "m", Prompt: c.PromptIDs, MaxTokens: c.MaxNewTokens}))
			}
			for i, c := range cases {
				ids, last := read(streams[i])
				if !slices.Equal(ids, c.Greedy.F32.IDs) || string(last.Finish) != c.Greedy.F32.Finish {
					t.Errorf("%s: %v (%s, %v), want %v (%s)", c.Name, ids, last.Finish, last.Err, c.Greedy.F32.IDs, c.Greedy.F32.Finish)
				}
			}
			s, _ := e.Stats("m")
			if s.KVUsed != 0 || s.Completed != int64(len(cases)) || (s.Preempted == 0) != (blocks == 256) {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestEightAtOnce: the same text alone and in company, sampled too, whatever of its
// prompt is taken over from the cache. It needs nothing but what the repository has.
func TestEightAtOnce(t *testing.T) {
	e := startReal(t, fixture.Model("stories260K/hf-f32"), 40)
	request := func(i int) Request {
		r := Request{Replica: "m", Prompt: []int32{1, 403, 407, 261, 378}, MaxTokens: 60, IgnoreStop: i%3 == 0}
		for n := range 11 * i {
			r.Prompt = append(r.Prompt, int32(260+(n*7)%200))
		}
		if i%2 == 1 {
			r.Sampling.Temperature, r.Sampling.TopP, r.Sampling.Seed = 0.8, 0.9, uint64(i)
		}
		return r
	}
	var want [8][]int32
	for i := range want {
		want[i], _ = read(submit(t, e, t.Context(), request(i)))
	}
	var streams [8]<-chan Event
	for i := range streams {
		streams[i] = submit(t, e, t.Context(), request(i))
	}
	for i, s := range streams {
		if ids, last := read(s); !slices.Equal(ids, want[i]) {
			t.Errorf("request %d: %v at once (%v), %v alone", i, ids, last.Err, want[i])
		}
	}
	if s, _ := e.Stats("m"); s.Prefix.Hits == 0 || s.Preempted == 0 {
		t.Errorf("nothing was taken over or preempted: %+v", s)
	}
}

// TestPromptLogitsOfModel: rows of a prompt do not depend on how it is cut into steps.
func TestPromptLogitsOfModel(t *testing.T) {
	e := startReal(t, fixture.Model("stories260K/hf-f32"), 40)
	prompt := []int32{1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396}
	_, all := read(submit(t, e, t.Context(), Request{Replica: "m", Prompt: prompt, PromptLogits: true}))
	const vocabulary = 512
	if len(all.PromptLogits) != len(prompt)*vocabulary {
		t.Fatalf("%d logits", len(all.PromptLogits))
	}
	for n := 1; n <= len(prompt); n += 6 {
		_, one := read(submit(t, e, t.Context(), Request{Replica: "m", Prompt: prompt[:n], PromptLogits: true}))
		if !slices.Equal(one.PromptLogits, all.PromptLogits[:n*vocabulary]) {
			t.Errorf("the rows of %d tokens differ from those of %d", n, len(prompt))
		}
	}
}

// TestPromptLogprobsOfModel: a prompt's logprobs are those of its rows, and come with
// the first event, whether more follow or not.
func TestPromptLogprobsOfModel(t *testing.T) {
	e := startReal(t, fixture.Model("stories260K/hf-f32"), 40)
	prompt := []int32{1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298}
	const vocabulary = 512
	_, all := read(submit(t, e, t.Context(), Request{Replica: "m", Prompt: prompt, PromptLogits: true}))
	var want []sampling.Token
	for i, id := range prompt[1:] {
		want = append(want, sampling.Logprobs(all.PromptLogits[i*vocabulary:][:vocabulary], id, 2))
	}
	for _, r := range []Request{{PromptOnly: true}, {MaxTokens: 3}} {
		r.Replica, r.Prompt, r.PromptLogprobs = "m", prompt, true
		r.Sampling.Logprobs, r.Sampling.TopLogprobs = true, 2
		first := true
		for ev := range submit(t, e, t.Context(), r) {
			if diff := cmp.Diff(want, ev.PromptLogprobs); first && diff != "" || !first && ev.PromptLogprobs != nil {
				t.Errorf("%+v: %s", r, diff)
			}
			first = false
		}
	}
}
