package controllers

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
)

// One bad model must not spread. A model that was loading or running a step
// when its worker's process died is tried once more, alone on an idle worker;
// if that dies too, the model is quarantined until its spec's revision changes.
// Where no worker will ever be idle, it is tried beside models that nobody
// suspects: never two at once, or one would be blamed for the other.

const (
	// quarantine is the number of deaths that ends the trial.
	quarantine = 2
	// probation is how long a death is remembered after its trial was passed.
	probation = 10 * time.Minute
	// quiet is how long a model that serves on, where it was before the death, stays a suspect: it
	// may not move meanwhile, and others may wait for that.
	quiet = 30 * time.Second
	// passed is how long a model stays resident alone to pass without a request.
	passed = 10 * time.Second
)

func (m *model) quarantined() bool { return m.trial != nil && m.trial.Deaths >= quarantine }

// tried: a suspect that may be the end of its worker. One that does not load is
// none, and neither is one that was there before the death.
func (h *home) tried() bool {
	return h.model != nil && h.model.trial != nil && !h.model.quarantined() &&
		(h.state == nil || h.state.Phase != worker.PhaseFailed && h.state.Phase != worker.PhaseRefused && !h.before(h.model.trial.Since.Time))
}

// before: the home has been on its device since before t.
func (h *home) before(t time.Time) bool {
	return h.state.Phase == worker.PhaseResident && h.station.Heard.Add(-seconds(h.state.ResidentSeconds)).Before(t)
}

// tries reports whether a suspect has its home on s.
func (s *station) tries() bool {
	for _, h := range s.homes {
		if h.tried() {
			return true
		}
	}
	return false
}

// remember takes a trial over from the status.
func (m *model) remember(t *v1alpha1.Trial, now time.Time) {
	switch {
	case !t.Passed:
		m.trial = t
	case now.Sub(t.Since.Time) < probation:
		m.parole = t
	}
}

// onRecord is what the status keeps of m's deaths.
func (m *model) onRecord() *v1alpha1.Trial {
	if m.trial != nil {
		return m.trial
	}
	return m.parole
}

// suspect notes the deaths since the last decision, and who passed the trial.
func (d *decision) suspect() {
	for _, s := range d.stations {
		last, now := s.memory.Last, s.Report
		if now == nil {
			continue
		}
		died := last.Instance != "" && last.Instance != now.Instance && !last.Draining && s.Deleting.IsZero() && !s.Failed
		if died {
			d.died(s, last)
		}
		if last.Instance != now.Instance {
			s.memory = WorkerMemory{Going: s.memory.Going, GoingSince: s.memory.GoingSince, Pool: s.memory.Pool}
		}
		s.memory.Last, s.memory.Heard = *now, s.Heard
	}
	for _, m := range d.models {
		if m.trial == nil || m.quarantined() {
			continue
		}
		for _, s := range d.stations {
			if d.acquits(s, m) {
				m.parole, m.trial = m.trial, nil
				m.parole.Passed = true
				break
			}
		}
	}
}

// died counts the death of a process against each model that it may be the fault
// of. One that has passed its trial answers for it at once if nobody else can.
func (d *decision) died(s *station, last worker.State) {
	atWork := s.atWork(last)
	for _, h := range atWork {
		m := d.byKey[h.model]
		if m == nil || h.revision != m.revision {
			continue
		}
		switch {
		case m.trial == nil && m.parole != nil && len(atWork) == 1:
			m.trial, m.parole = m.parole, nil
			m.trial.Passed = false
		case m.trial == nil:
			m.trial = &v1alpha1.Trial{Revision: m.revision}
		case h.began.Before(m.trial.Since.Time):
			continue // it was not being tried here
		}
		if m.trial.Worker == s.Name && m.trial.Instance == last.Instance {
			continue
		}
		m.trial.Deaths = min(m.trial.Deaths+1, quarantine)
		m.trial.Since = metav1.Time{Time: d.seen.Now.Truncate(time.Second)}
		m.trial.Worker, m.trial.Instance = s.Name, last.Instance
	}
}

// culprit is a model that was loading or running when its worker's process died.
type culprit struct {
	model, revision string
	began           time.Time // came to the device; one that was loading, at the latest
}

// atWork is who may be at fault: by what the process that died wrote down, else
// by its last report, which may be older than the request that was its end.
func (s *station) atWork(last worker.State) []culprit {
	var all []culprit
	if p := s.Report.Previous; p != nil && p.Instance == last.Instance {
		for _, a := range p.AtWork {
			began := s.memory.Heard // of the death nothing is known but that it was later
			if a.ResidentSeconds > 0 {
				began = s.Heard.Add(-seconds(a.ResidentSeconds))
			}
			all = append(all, culprit{a.Model, a.Revision, began})
		}
		return all
	}
	for _, h := range last.Homes {
		if h.Phase == worker.PhaseLoading || h.Running > 0 {
			all = append(all, culprit{h.Model, h.Revision, s.memory.Heard.Add(-seconds(h.ResidentSeconds))})
		}
	}
	return all
}

// acquits reports whether m was loaded on s after the death, beside no other
// suspect, and has answered a request or been there long enough.
func (d *decision) acquits(s *station, m *model) bool {
	r := s.Report
	if r == nil || s.silenced(d.seen.Now) {
		return false
	}
	i := slices.IndexFunc(r.Homes, func(h worker.HomeState) bool { return h.Model == m.key && h.Phase == worker.PhaseResident })
	if i < 0 || slices.ContainsFunc(r.Homes, func(h worker.HomeState) bool {
		o := d.byKey[h.Model]
		return o != nil && o != m && o.trial != nil
	}) {
		return false
	}
	h := r.Homes[i]
	if r.Instance == m.trial.Instance {
		return false
	}
	resident := seconds(h.ResidentSeconds) + d.seen.Now.Sub(s.Heard)
	if d.seen.Now.Add(-resident).Before(m.trial.Since.Time) {
		until := m.trial.Since.Add(quiet) // it had been there before: does anything more come of it?
		if d.seen.Now.Before(until) {
			d.soon(until)
		}
		return !d.seen.Now.Before(until)
	}
	if h.Completed > 0 || resident >= passed {
		return true
	}
	d.soon(d.seen.Now.Add(passed - resident))
	return false
}

// silenced: nothing has been heard for so long that the worker counts as
// silent, or its process is known to have ended.
func (s *station) silenced(now time.Time) bool {
	return s.Report != nil && !s.Connected && (s.Stopped || now.Sub(s.Heard) > silence)
}
