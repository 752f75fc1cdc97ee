package worker

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/residency"
)

// Watch gives the worker's state at once, on each change (at most one in 50 ms)
// and at least once a second, until ctx ends; then the channel is closed.
func (w *Worker) Watch(ctx context.Context) <-chan api.State {
	const atMost, atLeast = 50 * time.Millisecond, time.Second
	states := make(chan api.State)
	go func() {
		defer close(states)
		for {
			w.mu.Lock()
			changed := w.changed
			s := w.state()
			w.mu.Unlock()
			select {
			case states <- s:
			case <-ctx.Done():
				return
			}
			select {
			case <-time.After(atMost):
			case <-ctx.Done():
				return
			}
			select {
			case <-changed:
			case <-time.After(atLeast - atMost):
			case <-ctx.Done():
				return
			}
		}
	}()
	return states
}

// State is everything that the worker reports.
func (w *Worker) State() api.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state()
}

// state is State with w.mu held.
func (w *Worker) state() api.State {
	now := time.Now()
	s := api.State{
		Worker: w.o.Name, Pool: w.o.Pool, Instance: w.instance, Version: w.o.Version, Time: now,
		Epoch: w.epoch, Generation: w.generation, Draining: w.draining(), Missing: w.o.Missing, Previous: w.previous,
		Devices: make([]api.Device, 0, len(w.devices)), Homes: make([]api.HomeState, 0, len(w.homes)),
	}
	load := map[string]float64{}
	for _, h := range w.homes {
		r := h.report(now)
		s.Homes = append(s.Homes, r)
		load[h.key.device] += r.Load
	}
	for _, d := range w.devices {
		s.Devices = append(s.Devices, w.deviceState(d, load[d.Name]))
	}
	slices.SortFunc(s.Homes, func(a, b api.HomeState) int { return cmp.Compare(a.Model, b.Model) })
	return s
}

// report is one home of a State. w.mu is held.
func (h *home) report(now time.Time) api.HomeState {
	if o := h.old; o != nil && o.serves() && (h.phase == api.PhaseIdle || h.phase == api.PhaseFetching) && !h.gone {
		s := o.report(now)
		s.ServedNames, s.WantResident, s.Leaving = h.want.ServedNames, h.want.Resident, h.want.Draining
		s.Waiting += h.waiting
		return s
	}
	s := api.HomeState{
		Model: h.want.Model, Revision: h.key.revision, ServedNames: h.want.ServedNames, Devices: h.want.Devices,
		Tier: api.TierNone, Phase: h.phase, Reason: h.reason, Message: h.message, Progress: h.progress,
		Footprint: h.footprint, MaxTokens: h.context.MaxTokens, WantResident: h.want.Resident && !h.gone,
		Waiting: h.waiting,
	}
	c := h.w.measure(h.want.Model, now)
	s.Completed, s.LoadSeconds = c.Completed, c.lastLoad
	s.Load, s.Awake, s.BusySeconds = share(c.load), share(c.awake), c.busy
	s.EnergyJoules, s.Tokens = math.Round(h.w.joules(h.want.Model)*10)/10, h.w.worked(h.want.Model).tokens()
	switch {
	case h.loaded != nil || h.unloading:
		s.Tier = api.TierDevice
	case h.path != "":
		s.Tier = api.TierDisk
	}
	if s.Leaving = h.gone || h.want.Draining; s.Leaving {
		s.Phase, s.Progress = api.PhaseDraining, 0
	}
	if h.loaded != nil {
		s.ResidentSeconds = now.Sub(h.loadedAt).Seconds()
	}
	if stats, ok := h.stats(); ok {
		s.Running, s.KVBlocks, s.KVUsed = stats.Running, stats.KVBlocks, stats.KVUsed
		s.Completed += stats.Completed
	}
	// Those that have the model and are not in a batch are queued, or between text and tokens.
	s.Waiting += max(h.users-s.Running, 0)
	for _, o := range h.w.olds { // what they do is the model's, too
		if o != h && o.want.Model == h.want.Model {
			stats, _ := o.stats()
			s.Running += stats.Running
			s.Completed += stats.Completed
			s.Waiting += max(o.users-stats.Running, 0)
		}
	}
	if h.users == 0 && h.waiting == 0 {
		s.IdleSeconds = now.Sub(h.lastUse).Seconds()
	}
	return s
}

// share as it is reported: four digits are more than it means.
func share(s residency.Share) float64 { return math.Round(s.Value*1e4) / 1e4 }
