package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/backend/cuda"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/residency"
	"github.com/estiba/estiba/runtime/sampling"
)

// Loaded is a model on a device, ready for requests. It stays so until it is
// given back, however long that takes; the engine may end its requests with
// engine.ErrRemoved when its home has to go.
type Loaded struct {
	Home      api.Home
	Model     *model.Model
	Engine    *engine.Engine
	Replica   string // its name in the engine
	MaxTokens int    // context, after clamping

	footprint api.Footprint // measured
	program   backend.Program

	// Guarded by Worker.mu.
	users  int
	closed bool // the model is closed when the last user gives it back
}

// openBackend of a device.
func openBackend(d device.Device, o Options) (backend.Backend, error) {
	kind := d.Kind
	if o.Emulated || d.Lost { // one that is lost cannot be opened, and computes nothing
		kind = "cpu"
	}
	switch kind {
	case "cpu":
		b, err := cpu.New(d.Name, cpu.Options{Threads: o.Threads, Extents: extents(d.Capacity, d.Extent), Extent: d.Extent})
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Name, err)
		}
		return b, nil
	case cuda.Kind:
		return cuda.New(d, cuda.Options{Log: o.Log})
	}
	return nil, fmt.Errorf("device %s: this program has no backend for %q", d.Name, d.Kind)
}

// loadModel opens a model, compiles it for a device and gives it to the device's
// engine. It refuses files that need more than was admitted for them.
func (w *Worker) loadModel(ctx context.Context, h api.Home, path string, d *claimed, c api.Context, admitted api.Footprint, progress func(float64)) (l *Loaded, err error) {
	var m *model.Model
	if err := w.read(ctx, func() (err error) { m, err = model.Open(path); return err }); err != nil {
		return nil, classify(err)
	}
	defer func() {
		if l == nil {
			m.Close()
		}
	}()
	now, err := estimate(d.backend, m.Header, c, d.Extent)
	if err != nil || residency.Need(now) > residency.Need(admitted) {
		return nil, &fault{api.ReasonSourceUnavailable, "The files changed between admission and load; they are read again."}
	}
	step := residency.StepOf(m.Config, c, d.backend.StepTokens())
	cut, err := residency.CutExtent(m.Config, d.Extent)
	if err != nil {
		return nil, err
	}
	p, err := d.backend.Compile(ctx, m.Graph, m.Weights, backend.Limits{
		MaxTokens: step.Tokens, MaxRows: step.Rows, BlockTokens: cut.BlockTokens, PerExtent: cut.PerExtent, Progress: progress,
	})
	if err != nil {
		w.mu.Lock()
		w.deviceFailed(err, "")
		w.mu.Unlock()
		return nil, classify(fmt.Errorf("load %s: %w", path, err))
	}
	replica := d.replica(h.Model)
	err = d.engine.Add(engine.Replica{
		Name: replica, Program: p, PerExtent: cut.PerExtent, Floor: extents(now.KVFloorBytes, d.Extent), BlockTokens: cut.BlockTokens,
		Encoder: m.Config.Encoder, MaxTokens: c.MaxTokens, Vocabulary: m.Config.Vocabulary, Hidden: m.Config.Hidden, Stop: m.Config.EOS,
		StepTokens: step.Tokens, StepRows: step.Rows, Sequences: step.Sequences,
	})
	if err == nil {
		if err = try(ctx, m, d.engine, replica); err != nil {
			_ = d.engine.Remove(ctx, replica) // the only error: it is not there
		}
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	held := p.Bytes()
	return &Loaded{
		Home: h, Model: m, Engine: d.engine, Replica: replica, MaxTokens: c.MaxTokens, program: p,
		footprint: api.Footprint{
			WeightsBytes:   residency.RoundUp(held.Weights, d.Extent),
			KVFloorBytes:   now.KVFloorBytes,
			WorkspaceBytes: residency.RoundUp(held.Workspace+residency.Host(m.Config, m.HostBytes, step), d.Extent),
			Measured:       true,
		},
	}, nil
}

// estimate is the footprint of a model with a clamped context, as a backend holds its weights. The error is a *residency.CutError.
func estimate(b backend.Backend, h model.Header, c api.Context, extent int64) (api.Footprint, error) {
	return residency.Estimate(h.Config, b.WeightsBytes(h.Tensors), h.HostBytes, c, residency.StepOf(h.Config, c, b.StepTokens()), extent)
}

// extents in so many bytes.
func extents(bytes, extent int64) int { return int(bytes / extent) }

// try asks a replica for one answer, so that weights which answer with nothing never serve.
func try(ctx context.Context, m *model.Model, e *engine.Engine, replica string) error {
	if m.Tokenizer == nil {
		return nil // nobody can ask it for text
	}
	ids := m.Tokenizer.Encode("a", true)
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := engine.Request{Replica: replica, Prompt: ids, MaxTokens: 1, Trial: true}
	if m.Config.Encoder {
		r.Pooling = engine.Mean
	}
	events, err := e.Submit(ctx, r)
	if long, ok := errors.AsType[*engine.TooLongError](err); ok { // a context of hardly a token
		r.Prompt = ids[:1]
		if r.PromptOnly = long.MaxTokens == 1; r.PromptOnly {
			r.MaxTokens = 0
		}
		events, err = e.Submit(ctx, r)
	}
	if err != nil {
		return classify(err)
	}
	for ev := range events {
		switch {
		case errors.Is(ev.Err, sampling.ErrNotANumber):
			return &fault{api.ReasonInvalidModel, whatBroke(sampling.ErrNotANumber)}
		case ev.Err != nil:
			return classify(ev.Err)
		}
	}
	return ctx.Err()
}

// broke hears from an engine that a resident model cannot go on. Its home leaves
// the device, and is loaded again after a pause from what is there then.
func (w *Worker) broke(replica string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deviceFailed(err, replica)
	for h := range w.all() {
		l := h.loaded
		if l == nil || l.Replica != replica {
			continue
		}
		h.broken = &fault{Blamed(err), whatBroke(err)}
		w.log.Warn("model broke", "model", h.want.Model, "error", err)
		h.set(api.PhaseFailed, h.broken.reason, h.broken.message)
		w.settle()
	}
}

// Blamed is the wire's reason why a resident model cannot go on.
func Blamed(err error) string {
	if _, device := errors.AsType[*backend.DeviceError](err); device {
		return api.ReasonDeviceLost
	}
	if errors.Is(err, backend.ErrFault) { // which says nothing of the files that are there now
		return api.ReasonSourceUnavailable
	}
	return api.ReasonInvalidModel
}

// whatBroke says what is wrong with a model, and what to do about it.
func whatBroke(err error) string {
	device, sick := errors.AsType[*backend.DeviceError](err)
	switch {
	case sick && device.Lost:
		return fmt.Sprintf("Device %s is lost: %v. The model needs another home.", device.Device, device.Err)
	case sick:
		return fmt.Sprintf("Device %s is of no more use to this process: %v. Its process ends, and one that is started anew can use it.", device.Device, device.Err)
	case errors.Is(err, backend.ErrFault):
		return "The model's files changed or vanished while it was loaded. Put whole files there; it is loaded again from what is there."
	case errors.Is(err, sampling.ErrNotANumber):
		return "The model answers with no numbers (NaN), so its weights are broken. Replace its files."
	}
	return fmt.Sprintf("The model failed step after step: %v. The worker's log says more.", err)
}

// close ends the requests of a model by the end of ctx and takes it off the
// device. Its files stay mapped for those who still use it: see Worker.giveBack.
func (l *Loaded) close(ctx context.Context) {
	_ = l.Engine.Remove(ctx, l.Replica) // the only error: it is not there
	if l.program != nil {
		_ = l.program.Close()
	}
}

// closeLoaded is close, and the end of its files for this worker. w.mu must not be held.
func (w *Worker) closeLoaded(ctx context.Context, l *Loaded) {
	l.close(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	l.closed = true
	l.unmap()
}

// classify gives an error of opening or compiling a reason of the wire. What
// the machine cannot do now (no memory, no permission, files that have gone) is
// not the model's fault, and is tried again.
func classify(err error) error {
	_, device := errors.AsType[*backend.DeviceError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case device:
		return &fault{api.ReasonDeviceLost, whatBroke(err)}
	case errors.Is(err, model.ErrUnsupported):
		return &fault{api.ReasonUnsupportedModel, err.Error()}
	case errors.Is(err, model.ErrInvalid):
		return &fault{api.ReasonInvalidModel, err.Error()}
	}
	return &fault{api.ReasonSourceUnavailable, err.Error()}
}

// read calls f when nobody else reads a header.
func (w *Worker) read(ctx context.Context, f func() error) error {
	select {
	case w.reading <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.reading }()
	return f()
}

// header reads a model's header; what a hostile file may do is this model's failure.
func (w *Worker) header(ctx context.Context, path string) (h model.Header, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			w.log.Error("header panicked", "path", path, "panic", p, "stack", string(debug.Stack()))
			err = &fault{api.ReasonInvalidModel, fmt.Sprintf("The model broke its reader: %v.", p)}
		}
	}()
	err = w.read(ctx, func() (err error) { h, err = w.inspect(path); return err })
	if err != nil {
		return h, classify(err)
	}
	return h, nil
}

// Inspect reads a source's header and says what a replica of it would need on
// the worker's first device.
func (w *Worker) Inspect(ctx context.Context, r api.InspectRequest) api.Inspection {
	bad := func(err error) api.Inspection {
		return api.Inspection{Error: &api.InspectError{Reason: reasonOf(err), Message: err.Error()}}
	}
	if r.Format != "" && r.Format != "AsStored" {
		return bad(&fault{api.ReasonUnsupportedModel, fmt.Sprintf("This worker cannot make precision %s; use AsStored.", r.Format)})
	}
	path, done, err := w.o.Header(ctx, r.Source)
	if err != nil {
		return bad(err)
	}
	defer done()
	h, err := w.header(ctx, path)
	if err != nil {
		return bad(err)
	}
	c, _ := residency.Clamp(r.Context, h.Config.MaxPositions)
	on := w.devices[max(slices.IndexFunc(w.devices, func(d *claimed) bool { return !d.Lost }), 0)]
	f, err := estimate(on.backend, h, c, on.Extent)
	if err != nil {
		return bad(&fault{api.ReasonDoesNotFit, err.Error()})
	}
	return api.Inspection{
		Architecture: h.Architecture, Parameters: h.Parameters, ContextLength: h.Config.MaxPositions, MaxTokens: c.MaxTokens, Footprint: f,
	}
}

// stamp changes when a model's files do: names, sizes and times of a file or of
// what lies directly in a folder. Empty if there is nothing.
func stamp(path string) string {
	if path == "" {
		return ""
	}
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	var b strings.Builder
	one := func(name string, info fs.FileInfo) {
		fmt.Fprintf(&b, "%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
	}
	one(path, info)
	entries, err := os.ReadDir(path) // nothing for a file
	if err != nil {
		return b.String()
	}
	for _, e := range entries {
		if info, err := os.Stat(path + "/" + e.Name()); err == nil {
			one(e.Name(), info)
		}
	}
	return b.String()
}
