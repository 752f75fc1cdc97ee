package controllers

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
)

// Propose is seen as it would be with a Model applied. What a replica needs is
// as found for each pool ("namespace/name"), or what is known of another Model
// with the same source, precision and context. Seen is left as it is.
func Propose(seen Seen, m v1alpha1.Model, found map[string]worker.Inspection) Seen {
	m.Status, m.UID, m.Generation, m.CreationTimestamp = v1alpha1.ModelStatus{}, "", 1, metav1.NewTime(seen.Now)
	revision := Revision(&m)
	models := slices.Clone(seen.Models)
	at := slices.IndexFunc(models, func(o v1alpha1.Model) bool { return Key(&o) == Key(&m) })
	if at >= 0 {
		old := models[at]
		m.Status, m.UID, m.Generation, m.CreationTimestamp = *old.Status.DeepCopy(), old.UID, old.Generation+1, old.CreationTimestamp
	}
	for i := range models {
		if Key(&models[i]) == Key(&m) {
			continue
		}
		for _, f := range models[i].Status.Footprints {
			if f.Revision == revision {
				m.Status.Footprints = append(m.Status.Footprints, f)
			}
		}
	}
	if at >= 0 {
		models[at] = m
	} else {
		models = append(models, m)
	}
	seen.Models = models
	inspections := map[InspectKey]Inspected{}
	for key, in := range seen.Inspections {
		inspections[key] = in
	}
	for pool, in := range found {
		inspections[InspectKey{pool, revision}] = Inspected{At: seen.Now, Result: in}
	}
	seen.Inspections = inspections
	return seen
}

// ProposePool is seen as it would be with an InferencePool applied. Its template is taken to be what it was.
func ProposePool(seen Seen, p v1alpha1.InferencePool) Seen {
	pools := slices.Clone(seen.Pools)
	is := Pool{InferencePool: p}
	at := slices.IndexFunc(pools, func(o Pool) bool { return o.Key() == is.Key() })
	if at < 0 {
		is.Sole = len(pools) > 0 && pools[0].Sole
		seen.Pools = append(pools, is)
		return seen
	}
	is = pools[at]
	is.Spec, is.Labels = p.Spec, p.Labels
	pools[at] = is
	seen.Pools = pools
	return seen
}

// Unread are the pools ("namespace/name") that may hold the Model of a key and of
// which nobody knows what it needs there: those with a worker to ask, and those without.
func Unread(seen Seen, key string) (ask, rest []string) {
	d := decide(seen)
	m := d.byKey[key]
	if m == nil {
		return nil, nil
	}
	for _, p := range m.pools {
		if _, known := m.need.of(p.key); known {
			continue
		}
		if p.readable() {
			ask = append(ask, p.key)
		} else {
			rest = append(rest, p.key)
		}
	}
	return ask, rest
}

// InspectionOf is how a worker is asked what a Model needs.
func InspectionOf(m *v1alpha1.Model) worker.InspectRequest {
	return worker.InspectRequest{Source: modelSource(m), Format: string(m.Spec.Precision.Format), Context: modelContext(m)}
}

// ExplainProposal says what would come of the Model of a key if what leads from
// one Seen to the other were applied: for itself, and for others.
func ExplainProposal(before, after Seen, key string) Explanation {
	e := Explanation{Model: key}
	if !after.Settled {
		e = unsettled(after, key)
		e.DryRun = true
		return e
	}
	d, was := decide(after), decide(before)
	m := d.byKey[key]
	if m == nil {
		return unknown(after, key)
	}
	e = d.explain(m, true)
	e.Effects = effects(was, d, key)
	return e
}

// effects are what changes for models besides one, and for pools.
func effects(was, is *decision, key string) []string {
	var all []string
	for _, m := range is.models {
		old := was.byKey[m.key]
		if m.key == key || old == nil {
			continue
		}
		left, came := without(old.workers(), m.workers()), without(m.workers(), old.workers())
		switch {
		case len(left) > 0 && len(came) > 0 || len(came) > 0 && m.move != nil:
			all = append(all, fmt.Sprintf("%s moves to worker %s", m.key, list(came)))
		case len(left) > 0:
			all = append(all, fmt.Sprintf("%s gives up its home on worker %s", m.key, list(left)))
		}
	}
	for _, name := range sortedKeys(is.plan.Create) {
		if n := is.plan.Create[name] - was.plan.Create[name]; n > 0 {
			all = append(all, fmt.Sprintf("pool %s starts %s", name, count(n, "worker")))
		}
	}
	return all
}

// workers are those where m has a home.
func (m *model) workers() []string {
	var all []string
	for _, h := range m.homes {
		all = append(all, h.station.Name)
	}
	slices.Sort(all)
	return all
}

func without(all, these []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(these, s) })
}
