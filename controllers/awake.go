package controllers

import (
	"math"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
)

// How often a model that may sleep is awake bounds how many such models share a
// device. It is an exponential moving average of "on a device, and asked for within
// the last minute, or waited for": after an hour, half of it is what was so since
// then. A model that nobody knows begins with a quarter, or with what its worker
// has seen.
const (
	awakeHalf = time.Hour
	// inUse is how long after its last request a model counts as awake.
	inUse = time.Minute
)

// doze brings the awake shares of the models that sleep up to date.
func (d *decision) doze() {
	for _, m := range d.models {
		if !m.sleeps() {
			continue
		}
		a, known := d.seen.Memory.Awake[m.key]
		if !known {
			a = Awake{float64(packing.NewAwake) / 1000, d.seen.Now}
			for _, h := range m.homes {
				if h.state != nil && h.state.Awake > 0 {
					a.Share = min(h.state.Awake, 1)
				}
			}
		}
		a = a.after(d.seen.Now, m.inUse())
		d.plan.Memory.Awake[m.key] = a
		m.share = int(math.Round(a.Share * 1000))
	}
}

// after is the share at now, when it has been so, or not, since a.At.
func (a Awake) after(now time.Time, so bool) Awake {
	past := now.Sub(a.At)
	if past <= 0 {
		return a
	}
	is := 0.0
	if so {
		is = 1
	}
	return Awake{is + (a.Share-is)*math.Exp2(-float64(past)/float64(awakeHalf)), now}
}

// inUse: somebody uses the model, or waits for it.
func (m *model) inUse() bool {
	if m.load.Total() > 0 {
		return true
	}
	for _, h := range m.homes {
		if h.onDevice() && h.state.IdleSeconds < inUse.Seconds() && h.state.Completed > 0 {
			return true
		}
	}
	return false
}

// onDevice: the home's bytes are in its device's account, or are about to be.
func (h *home) onDevice() bool { return h.state != nil && occupies(h.state) }

func occupies(s *worker.HomeState) bool {
	return s.Tier == worker.TierDevice || s.Phase == worker.PhaseResident || s.Phase == worker.PhaseLoading
}

// busy: on the device, and with requests.
func (h *home) busy() bool { return h.onDevice() && h.state.Running+h.state.Waiting > 0 }
