package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/residency"
)

// TestRealModelsShareADevice wakes eight homes of a real model in turn on a
// device with room for three: whatever is evicted and loaded meanwhile, every
// request gets the text that it gets alone.
func TestRealModelsShareADevice(t *testing.T) {
	w, err := New(Options{
		Name: "w0", Pool: "default/cpu", Log: slog.New(slog.DiscardHandler), Drain: time.Second,
		Devices: []device.Device{{Name: "cpu-0", Kind: "cpu", Extent: 64 << 10, Capacity: 16 << 20}},
		Fetch:   func(_ context.Context, src api.Source, _ func(float64)) (string, error) { return src.URI, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	path := fixture.Model("stories260K/hf-f32")
	a := api.Assignment{Epoch: 1, Generation: 1, Instance: w.State().Instance}
	for i := range 8 {
		a.Homes = append(a.Homes, api.Home{Model: fmt.Sprintf("ns/m%d", i), Source: api.Source{URI: path}, Devices: []string{"cpu-0"}, EvictionOrder: i % 2})
	}
	if r := w.Assign(a); r != nil {
		t.Fatalf("%+v", r)
	}
	inspected := w.Inspect(ctx, api.InspectRequest{Source: api.Source{URI: path}})
	if need := inspected.Footprint.Total(); need*3 > 16<<20 || need*8 < 16<<20 {
		t.Fatalf("%d bytes each: the device must have room for some of eight", need)
	}

	complete := func(model string) ([]int32, error) {
		l, release, err := w.Use(ctx, model)
		if err != nil {
			return nil, err
		}
		defer release()
		events, err := l.Engine.Submit(ctx, engine.Request{Replica: l.Replica, Prompt: l.Model.Tokenizer.Encode("Once upon a time", true), MaxTokens: 12})
		if err != nil {
			return nil, err
		}
		var ids []int32
		for e := range events {
			if e.Err != nil {
				return nil, e.Err
			}
			if e.Finish == "" {
				ids = append(ids, e.Token.ID)
			}
		}
		return ids, nil
	}
	want, err := complete("ns/m0")
	if err != nil || len(want) == 0 {
		t.Fatalf("%v, %v", want, err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	refused, answered := 0, 0
	for i := range 6 {
		rng := rand.New(rand.NewPCG(1, uint64(i)))
		wg.Go(func() {
			for range 25 {
				ids, err := complete(fmt.Sprintf("ns/m%d", rng.IntN(8)))
				u, unavailable := errors.AsType[*UnavailableError](err)
				mu.Lock()
				switch {
				case unavailable && strings.HasPrefix(u.Message, "Needs "):
					refused++
				case err != nil || !slices.Equal(ids, want):
					t.Errorf("got %v, %v; want %v", ids, err, want)
				default:
					answered++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	s := w.State()
	if d := s.Devices[0]; d.UsedBytes > d.CapacityBytes {
		t.Errorf("%+v", d)
	}
	var loads int64
	for _, c := range w.Counters() {
		loads += c.Loads
	}
	t.Logf("%d answered, %d refused, %d loads", answered, refused, loads)
	if answered == 0 || loads < 8 {
		t.Error("the homes never took turns")
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if used := w.State().Devices[0].UsedBytes; used != 0 {
		t.Errorf("%d bytes are left", used)
	}
}

// TestMemoryIsLentUntilItIsWanted: a model under load has more KV blocks than its floor
// while the device has room; another one that is woken has its memory all the same,
// and no text is another for it.
func TestMemoryIsLentUntilItIsWanted(t *testing.T) {
	const extent = 64 << 10
	path := fixture.Model("stories260K/hf-f32")
	h, err := model.Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := residency.Clamp(api.Context{}, h.Config.MaxPositions)
	need, err := estimate(anyBackend(), h, c, extent)
	if err != nil {
		t.Fatal(err)
	}
	floor := int(need.KVFloorBytes / extent)
	cut, err := residency.CutExtent(h.Config, extent)
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(Options{
		Name: "w0", Pool: "default/cpu", Log: slog.New(slog.DiscardHandler), Drain: time.Second,
		Devices: []device.Device{{Name: "cpu-0", Kind: "cpu", Extent: extent, Capacity: 2 * need.Total()}},
		Fetch:   func(_ context.Context, src api.Source, _ func(float64)) (string, error) { return src.URI, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	a := api.Assignment{Epoch: 1, Generation: 1, Instance: w.State().Instance}
	for _, name := range []string{"ns/a", "ns/b"} {
		a.Homes = append(a.Homes, api.Home{Model: name, Source: api.Source{URI: path}, Devices: []string{"cpu-0"}})
	}
	if r := w.Assign(a); r != nil {
		t.Fatalf("%+v", r)
	}
	l, release, err := w.Use(ctx, "ns/a")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	request := func(i int) engine.Request {
		r := engine.Request{Replica: l.Replica, Prompt: []int32{1, int32(300 + i)}, MaxTokens: 200, IgnoreStop: true}
		for n := range 120 {
			r.Prompt = append(r.Prompt, int32(260+(n*(7+2*i))%200))
		}
		return r
	}
	read := func(events <-chan engine.Event) (ids []int32) {
		for ev := range events {
			if ev.Err != nil {
				t.Error(ev.Err)
			}
			if ev.Finish == "" {
				ids = append(ids, ev.Token.ID)
			}
		}
		return ids
	}
	submit := func(i int) <-chan engine.Event {
		events, err := l.Engine.Submit(ctx, request(i))
		if err != nil {
			t.Fatal(err)
		}
		return events
	}
	const texts = 5
	var want [texts][]int32
	for i := range want {
		want[i] = read(submit(i))
	}
	var all [texts]<-chan engine.Event
	for i := range all {
		all[i] = submit(i)
	}
	for range 150 { // all of them, most of the way
		for i := range all {
			<-all[i]
		}
	}
	s := w.State()
	lent := s.Homes[0].KVBlocks
	if per := lent / cut.PerExtent; per <= 2*floor || s.Devices[0].UsedBytes != need.Total() {
		t.Errorf("%d extents held, the floor is %d; %d bytes used", per, floor, s.Devices[0].UsedBytes)
	}
	b, release, err := w.Use(ctx, "ns/b")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	s = w.State()
	if got := s.Homes[0].KVBlocks / cut.PerExtent; got > 2*floor || s.Devices[0].UsedBytes != 2*need.Total() { // b uses nothing yet
		t.Errorf("%d extents held after b was loaded, the floor is %d; %d bytes used", got, floor, s.Devices[0].UsedBytes)
	}
	r := request(0)
	r.Replica = b.Replica
	events, err := b.Engine.Submit(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(events); !slices.Equal(got, want[0]) {
		t.Errorf("b: %v, want %v", got, want[0])
	}
	for i := range all {
		if got := read(all[i]); !slices.Equal(got, want[i][150:]) {
			t.Errorf("text %d: %v, alone %v", i, got, want[i][150:])
		}
	}
	if n := w.Counters()["ns/a"].Preempted; n == 0 {
		t.Error("nobody was preempted")
	}
}
