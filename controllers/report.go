package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/policy/scaling"
	"github.com/estiba/estiba/internal/status"
)

// maxPlacements bounds the placements in a status.
const maxPlacements = 64

// report writes down what is so, for people and for a later leader.
func (d *decision) report() {
	d.plan.Models, d.plan.Pools = make([]v1alpha1.ModelStatus, 0, len(d.seen.Models)), make([]v1alpha1.InferencePoolStatus, 0, len(d.seen.Pools))
	for _, m := range d.inOrder {
		d.plan.Models = append(d.plan.Models, d.modelStatus(m))
	}
	for i := range d.seen.Pools {
		d.plan.Pools = append(d.plan.Pools, d.poolStatus(d.pools[d.seen.Pools[i].Key()]))
	}
}

func (d *decision) modelStatus(m *model) v1alpha1.ModelStatus {
	s := v1alpha1.ModelStatus{
		ObservedGeneration: m.Generation,
		Selector:           v1alpha1.LabelModelPrefix + string(m.UID),
		ServedNames:        m.names,
		Trial:              m.onRecord(),
	}
	if m.UID == "" {
		s.Selector = ""
	}
	for _, h := range m.homes {
		if h.leaving() || h.extra {
			continue
		}
		s.Replicas++
		if h.ready() {
			s.ReadyReplicas++
		}
	}
	s.Footprints = d.footprints(m)
	s.Placements = d.placements(m)
	s.Summary = summary(m, s)
	s.Conditions = d.verdict(m, s).Conditions(m.Status.Conditions, m.Generation, d.seen.Now)
	return s
}

// footprints are those of the status that m has, if they say the same: most do, and
// ten thousand of them are not made anew each time.
func (d *decision) footprints(m *model) []v1alpha1.FootprintStatus {
	was, n, same := m.Status.Footprints, 0, true
	for _, p := range m.pools {
		if f, known := m.need.of(p.key); known {
			same = same && n < len(was) && was[n].Pool == p.key && was[n].Revision == m.revision && int(was[n].MaxTokens) == m.need.tokens(p.key) && footprintOf(&was[n]) == f
			n++
		}
	}
	if same && n == len(was) {
		return was
	}
	all := make([]v1alpha1.FootprintStatus, 0, n)
	for _, p := range m.pools {
		if f, known := m.need.of(p.key); known {
			all = append(all, v1alpha1.FootprintStatus{
				Pool: p.key, Weights: quantity(f.WeightsBytes), KVFloor: quantity(f.KVFloorBytes), Workspace: quantity(f.WorkspaceBytes),
				Measured: f.Measured, MaxTokens: int32(m.need.tokens(p.key)), Revision: m.revision,
			})
		}
	}
	return all
}

func footprintOf(f *v1alpha1.FootprintStatus) worker.Footprint {
	return worker.Footprint{WeightsBytes: f.Weights.Value(), KVFloorBytes: f.KVFloor.Value(), WorkspaceBytes: f.Workspace.Value(), Measured: f.Measured}
}

func quantity(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }

func (d *decision) placements(m *model) []v1alpha1.Placement {
	all := d.listed[:0]
	for _, h := range m.homes {
		p := v1alpha1.Placement{Pool: h.station.pool.key, Worker: h.station.Name, Devices: h.devices, State: h.placement(), Reason: h.reason}
		if p.State == v1alpha1.PlacementFailed {
			p.Reason = h.state.Message
		}
		p.Since = metav1.NewTime(d.seen.Now.Truncate(time.Second))
		for _, old := range m.Status.Placements {
			if old.Worker == p.Worker && old.State == p.State && slices.Equal(old.Devices, p.Devices) {
				p.Since = old.Since
			}
		}
		all = append(all, p)
	}
	d.listed = all
	slices.SortFunc(all, func(a, b v1alpha1.Placement) int { return cmp.Compare(a.Worker, b.Worker) })
	all = all[:min(len(all), maxPlacements)]
	if slices.EqualFunc(all, m.Status.Placements, samePlacement) {
		return m.Status.Placements
	}
	return slices.Clone(all)
}

func (h *home) placement() v1alpha1.PlacementState {
	if h.leaving() {
		return v1alpha1.PlacementDraining
	}
	if h.state == nil {
		return v1alpha1.PlacementAssigned
	}
	switch h.state.Phase {
	case worker.PhaseResident:
		return v1alpha1.PlacementResident
	case worker.PhaseFetching, worker.PhaseLoading:
		return v1alpha1.PlacementLoading
	case worker.PhaseRefused:
		return v1alpha1.PlacementWaiting
	case worker.PhaseFailed:
		return v1alpha1.PlacementFailed
	case worker.PhaseDraining:
		return v1alpha1.PlacementDraining
	}
	if h.state.Tier == worker.TierHost {
		return v1alpha1.PlacementHost
	}
	return v1alpha1.PlacementDisk
}

func summary(m *model, s v1alpha1.ModelStatus) v1alpha1.ModelSummary {
	if stayed(s.Placements, m.Status.Placements) && stayed(s.Footprints, m.Status.Footprints) {
		return m.Status.Summary
	}
	var pools, workers, devices []string
	for _, p := range s.Placements {
		pools = append(pools, short(p.Pool))
		workers = append(workers, p.Worker)
		devices = append(devices, strings.Join(p.Devices, ","))
	}
	sum := v1alpha1.ModelSummary{Pool: firstOf(unique(pools)), Worker: firstOf(workers), Device: firstOf(devices)}
	total := int64(0)
	for _, h := range m.homes {
		n := m.need.in(h.station.pool.key).Total()
		if n == 0 && h.state != nil { // of the spec before its last change
			n = h.state.Footprint.Total()
		}
		total += n
	}
	if total > 0 {
		sum.Memory = brief(total)
	} else if n := likely(known(m), ""); n > 0 {
		sum.Memory = "needs " + brief(n)
	}
	return sum
}

// stayed reports whether a list is the one from before, not one like it.
func stayed[T any](now, before []T) bool {
	return len(now) > 0 && len(now) == len(before) && &now[0] == &before[0]
}

func unique(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }

// firstOf is "a", or "a +2" for three.
func firstOf(list []string) string {
	switch len(list) {
	case 0:
		return ""
	case 1:
		return list[0]
	}
	return fmt.Sprintf("%s +%d", list[0], len(list)-1)
}

// brief writes bytes for a column: 1.1Mi.
func brief(n int64) string {
	if n < 1024 {
		return fmt.Sprint(n)
	}
	return strings.TrimSuffix(strings.ReplaceAll(packing.Size(n), " ", ""), "B")
}

// verdict says whether a request to m would be answered; if not, why not, and who can help.
func (d *decision) verdict(m *model, s v1alpha1.ModelStatus) status.Verdict {
	v := d.withBrake(m, d.answer(m, s))
	v.Placed = d.placed(m, s, v)
	if m.conflict != "" && v.Reason != v1alpha1.ReasonNameConflict {
		message := m.conflict + " This Model answers to " + strings.Join(m.names, ", ") + ". Choose another name in spec.servedNames."
		v.StalledBy = &status.Part{True: true, Reason: v1alpha1.ReasonNameConflict, Message: message}
		v.Ready, v.Stalled, v.Progressing = false, true, false
		v.Reason, v.Message = v1alpha1.ReasonNameConflict, message
	}
	return v
}

// answer is the verdict without a look at names.
func (d *decision) answer(m *model, s v1alpha1.ModelStatus) status.Verdict {
	for _, rule := range []func(*decision, *model) (status.Verdict, bool){
		(*decision).switchedOff, (*decision).zero, (*decision).serving, (*decision).asleep, (*decision).settling, (*decision).unread, (*decision).making, (*decision).evicted, (*decision).homeless,
	} {
		if v, applies := rule(d, m); applies {
			return v
		}
	}
	return status.Verdict{Reason: v1alpha1.ReasonWaitingForWorker, Message: "Waits for a worker.", Progressing: true}
}

// switchedOff: m is to have no home.
func (d *decision) switchedOff(m *model) (status.Verdict, bool) {
	v := status.Verdict{Reason: m.off()}
	switch v.Reason {
	case "":
		return v, false
	case v1alpha1.ReasonSuspended:
		v.Message = "Requests are answered with an error. Set spec.suspend to false to serve it."
	case v1alpha1.ReasonQuarantined:
		v.Stalled = true
		v.Message = fmt.Sprintf("%d workers died while they were loading or running this model, the last one (%s) at %s. Change the spec (source, precision or context) to try again.",
			m.trial.Deaths, cmp.Or(m.trial.Worker, "unknown"), m.trial.Since.UTC().Format(time.RFC3339))
	case v1alpha1.ReasonNameConflict:
		v.Stalled = true
		v.Message = m.conflict + " No name is left for this Model; give it another one."
	case v1alpha1.ReasonNoPoolMatches:
		v.Stalled = true
		v.Message = d.noPool(m)
	default:
		v = status.Verdict{Reason: v1alpha1.ReasonDraining, Message: "Running requests end first.", Progressing: true}
	}
	return v, true
}

func (d *decision) noPool(m *model) string {
	if len(d.pools) == 0 {
		return "There is no InferencePool yet; create one."
	}
	const mend = " this Model: mend spec.poolSelector of the Model, or labels or spec.allowedNamespaces of a pool."
	if len(d.pools) == 1 {
		return "The only InferencePool may not hold" + mend
	}
	return fmt.Sprintf("None of the %d InferencePools may hold", len(d.pools)) + mend
}

// zero: a person has asked for no replicas, and no request changes that.
func (d *decision) zero(m *model) (status.Verdict, bool) {
	if r := m.Spec.Replicas; r == nil || *r > 0 {
		return status.Verdict{}, false
	}
	return status.Verdict{Reason: v1alpha1.ReasonSuspended, Message: "spec.replicas is 0: requests are answered with an error. Raise it, or use spec.autoscaling with min 0, so that a request wakes the model."}, true
}

// serving: some home has the weights on a device.
func (d *decision) serving(m *model) (status.Verdict, bool) {
	n, wanted := 0, max(1, m.awake)
	for _, h := range m.homes {
		if h.resident() && !h.station.hard && !h.extra {
			n++
		}
	}
	if n == 0 {
		return status.Verdict{}, false
	}
	v := status.Verdict{Ready: true, Reason: v1alpha1.ReasonServing}
	v.Message = fmt.Sprintf("%d of %s %s requests.", n, count(max(n, wanted), "replica"), verb(n, "answers", "answer"))
	v.Message += m.clamped() + m.note
	v.Progressing = n < wanted && (m.missing == 0 || m.grows != nil)
	if slices.ContainsFunc(m.homes, (*home).old) {
		d.outOfDate(m, &v)
	}
	return v, true
}

// clamped says that the model's own context is shorter than what the spec asks for.
func (m *model) clamped() string {
	asked := int(m.Spec.Context.MaxTokens)
	for _, h := range m.homes {
		if has := m.need.tokens(h.station.pool.key); h.resident() && !h.old() && 0 < has && has < asked {
			return fmt.Sprintf(" The context is %d tokens, the model's own; spec.context.maxTokens asks for %d.", has, asked)
		}
	}
	return ""
}

// outOfDate adds to the verdict on a model that serves why it serves the spec before the last change.
func (d *decision) outOfDate(m *model, v *status.Verdict) {
	v.Progressing = true
	v.Message += " They are of the spec before its last change"
	switch f := m.failure; {
	case f != nil && f.Reason == v1alpha1.ReasonWaitingForWorker:
		v.Message += ", and nobody has read the new one: " + sentence(f.Message)
	case f != nil:
		v.Message += ", whose source cannot be used: " + sentence(f.Message)
		if f.Reason != worker.ReasonSourceUnavailable {
			v.StalledBy = &status.Part{True: true, Reason: f.Reason, Message: sentence(f.Message)}
		}
	case len(m.need) > 0 && !d.possible(m):
		v.StalledBy = &status.Part{True: true, Reason: v1alpha1.ReasonDoesNotFit, Message: d.tooLarge(m)}
		v.Message += ". " + v.StalledBy.Message
	default:
		v.Message += ", which comes next."
	}
	if v.StalledBy != nil {
		v.Stalled, v.Progressing = true, false
	}
}

// tooLarge says that no device of m's pools could hold it.
func (d *decision) tooLarge(m *model) string {
	return fmt.Sprintf("Needs %s; the largest device of its pools has %s.", packing.Size(smallestNeed(m)), packing.Size(largestDevice(m))) + d.limits(m)
}

func verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// asleep: nothing is resident, and a request wakes it.
func (d *decision) asleep(m *model) (status.Verdict, bool) {
	v := status.Verdict{Ready: true, Reason: v1alpha1.ReasonScaledToZero}
	if !m.sleeps() || m.trial != nil {
		return v, false
	}
	for _, h := range m.homes {
		if !h.ready() || h.station.hard || d.shut(h) {
			continue
		}
		v.Message = fmt.Sprintf("Nothing is resident; a request wakes the model on worker %s.", h.station.Name)
		if h.state.Phase != worker.PhaseIdle {
			v.Message = fmt.Sprintf("A request wakes the model on worker %s now.", h.station.Name)
		}
		return v, true
	}
	stays := slices.ContainsFunc(m.homes, func(h *home) bool { return !h.leaving() })
	if !stays && m.grows != nil && m.grows.Blocked == "" && m.load.Total() == 0 && !slices.ContainsFunc(m.grows.stations, (*station).starting) {
		v.Message = fmt.Sprintf("Nothing is resident; a request starts a worker in pool %s and wakes the model there.", short(m.grows.key))
		return v, true
	}
	return v, false
}

// settling: there is a home, and it is not ready.
func (d *decision) settling(m *model) (status.Verdict, bool) {
	var best *status.Verdict
	for _, h := range m.homes {
		v := d.homeVerdict(h)
		if best == nil || !best.Progressing && v.Progressing {
			best = &v
		}
	}
	if best == nil {
		return status.Verdict{}, false
	}
	return *best, true
}

func (d *decision) homeVerdict(h *home) status.Verdict {
	at := fmt.Sprintf("worker %s", h.station.Name)
	switch {
	case h.station.silent:
		return status.Verdict{Reason: v1alpha1.ReasonWorkerLost, Progressing: true,
			Message: fmt.Sprintf("Worker %s has reported nothing since %s. The model keeps its home there until the pod is gone.", h.station.Name, h.station.Heard.UTC().Format(time.RFC3339))}
	case h.leaving():
		return status.Verdict{Reason: v1alpha1.ReasonDraining, Progressing: true, Message: h.ends() + " on " + at + ", which is on its way out" + h.station.cause() + "; then the model gets another home."}
	case h.station.Report == nil:
		return status.Verdict{Reason: v1alpha1.ReasonWaitingForWorker, Progressing: true, Message: "The model has a home on " + at + ", which has not reported yet."}
	case h.state == nil || !slices.Equal(h.state.Devices, h.devices): // it speaks of the home that this one follows
		return status.Verdict{Reason: v1alpha1.ReasonLoading, Progressing: true, Message: "Assigned to " + at + ", device " + strings.Join(h.devices, ", ") + "."}
	}
	reason := cmp.Or(h.state.Reason, v1alpha1.ReasonRefused)
	switch h.state.Phase {
	case worker.PhaseIdle:
		if d.shut(h) {
			return status.Verdict{Reason: v1alpha1.ReasonDoesNotFit, Progressing: true,
				Message: fmt.Sprintf("Needs %s, for which device %s of %s has no room beside what stays there, nor has another one.", packing.Size(h.taken[0].Bytes), h.devices[0], at) + d.limits(h.model)}
		}
	case worker.PhaseFailed:
		stalled := slices.Contains([]string{worker.ReasonDigestMismatch, worker.ReasonInvalidModel, worker.ReasonUnsupportedModel, worker.ReasonDoesNotFit}, reason)
		return status.Verdict{Reason: reason, Message: sentence(cmp.Or(h.state.Message, "Worker "+h.station.Name+" does not say why")), Stalled: stalled, Progressing: !stalled}
	case worker.PhaseRefused:
		why := "Refused by " + at + ": " + sentence(cmp.Or(h.state.Message, "it does not say why"))
		if reason == worker.ReasonDoesNotFit && !h.old() && !d.possible(h.model) { // its device has become smaller, or its files larger
			return status.Verdict{Reason: reason, Message: d.tooLarge(h.model) + " " + why, Stalled: true}
		}
		return status.Verdict{Reason: reason, Message: why, Progressing: true}
	case worker.PhaseDraining:
		if h.old() {
			return status.Verdict{Reason: v1alpha1.ReasonLoading, Progressing: true, Message: "The revision before this one ends on " + at + " first."}
		}
		message := h.ends() + " on " + at + ", then the model leaves its device" // as it was told to, unless the worker says why
		if h.state.Message != "" {
			message += ": " + h.state.Message
		}
		return status.Verdict{Reason: v1alpha1.ReasonDraining, Progressing: true, Message: sentence(message)}
	}
	what := "Loading"
	if h.state.Phase == worker.PhaseFetching {
		what = "Fetching the files"
	}
	if h.state.Progress > 0 {
		what += fmt.Sprintf(" (%d %%)", int(h.state.Progress*10)*10)
	}
	return status.Verdict{Reason: v1alpha1.ReasonLoading, Progressing: true, Message: what + " on " + at + "."}
}

// ends says what has to end at a home before it is given up.
func (h *home) ends() string {
	n := 0
	if h.state != nil {
		n = h.state.Running + h.state.Waiting
	}
	if n == 0 {
		return "Running requests end"
	}
	return fmt.Sprintf("%s %s", count(n, "request"), verb(n, "ends", "end"))
}

// cause is why the worker is on its way out, in brackets, if that is known.
func (s *station) cause() string {
	switch {
	case s.Leaving != "":
		return " (" + s.Leaving + ")"
	case s.memory.Going == scaling.OutOfDate:
		return " (the pool's template has changed)"
	case s.memory.Going != "" && s.memory.Going != draining:
		return " (" + s.memory.Going + ")"
	}
	return ""
}

// sentence ends with a full stop.
func sentence(s string) string {
	if s == "" || strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}

// unread: nobody knows yet what m needs.
func (d *decision) unread(m *model) (status.Verdict, bool) {
	if len(m.need) > 0 {
		return status.Verdict{}, false
	}
	if f := m.failure; f != nil {
		again := f.Reason == worker.ReasonSourceUnavailable || f.Reason == v1alpha1.ReasonWaitingForWorker
		return status.Verdict{Reason: f.Reason, Message: sentence(f.Message), Stalled: !again, Progressing: again}, true
	}
	for _, p := range m.pools {
		if p.readable() {
			return status.Verdict{Reason: v1alpha1.ReasonLoading, Progressing: true, Message: "A worker of pool " + short(p.key) + " reads the model's header."}, true
		}
	}
	return d.waiting(m), true
}

// homeless: the need is known, and there is no home.
func (d *decision) homeless(m *model) (status.Verdict, bool) {
	if len(m.homes) > 0 {
		return status.Verdict{}, false
	}
	if m.grows == nil && !d.possible(m) {
		return status.Verdict{Reason: v1alpha1.ReasonDoesNotFit, Stalled: true, Message: d.tooLarge(m)}, true
	}
	if m.grows != nil || m.why.Reserved > 0 || m.why.Devices() == 0 {
		return d.waiting(m), true
	}
	// Only a person can help if it is larger than every device there is, whoever else uses that, or all that
	// is in its way stays.
	return status.Verdict{Reason: v1alpha1.ReasonDoesNotFit, Message: m.why.String() + d.limits(m), Stalled: (m.tooLarge() || d.stuck(m)) && !m.kept()}, true
}

// stuck: no device comes to have room for m by itself. Nothing leaves, and all that moves, displacement and
// sleep could leave free of m's pools is together less than it needs.
func (d *decision) stuck(m *model) bool {
	if y := m.why; y.Excluded > 0 || y.Reserved > 0 || m.gave != nil {
		return false
	}
	for _, p := range m.pools {
		var free, asleep, largest int64
		for _, s := range p.present(d.seen.Now) {
			if !s.usable || s.silent || d.touched[s.Name] > 0 || slices.ContainsFunc(s.Report.Homes, func(h worker.HomeState) bool { return s.homes[h.Model] == nil }) {
				return false
			}
			for i := range s.Report.Devices {
				if at := &s.Report.Devices[i]; !at.Lost() {
					free += at.CapacityBytes
				}
			}
			for _, h := range s.homes {
				if h.model == nil || h.extra || h.draining || h.old() || h.model.wanted > h.model.replicas() {
					return false
				}
				if h.model.rank(p) < m.rank(p) && h.model.Spec.Eviction != v1alpha1.EvictNever {
					continue
				}
				for _, at := range h.taken {
					if !h.model.sleeps() {
						free -= at.Bytes
					} else if !m.sleeps() { // with the others that sleep, m shares what is left
						asleep, largest = asleep+at.Bytes, max(largest, at.Bytes)
					}
				}
			}
		}
		if free-max(largest, asleep*packing.LeastAwake/1000) >= likely(known(m), p.key) {
			return false
		}
	}
	return true
}

// possible reports whether m fits an empty device of some pool, as far as is known.
func (d *decision) possible(m *model) bool {
	return m.why.Devices() > 0 || slices.ContainsFunc(m.pools, func(p *pool) bool { return p.device == 0 || likely(known(m), p.key) <= p.device })
}

func smallestNeed(m *model) int64 {
	return slices.Min(slices.Collect(maps.Values(known(m))))
}

// largestDevice of m's pools, in bytes: of those that are not lost, or as they are expected where there is none.
func largestDevice(m *model) (n int64) {
	for _, p := range m.pools {
		here := int64(0)
		for _, s := range p.stations {
			if s.Report == nil {
				continue
			}
			for i := range s.Report.Devices {
				if at := &s.Report.Devices[i]; !at.Lost() {
					here = max(here, at.Whole())
				}
			}
		}
		n = max(n, cmp.Or(here, p.device))
	}
	return n
}

// limits says why no pool grows, and what is the matter with the devices that there are.
func (d *decision) limits(m *model) string {
	var b strings.Builder
	for _, p := range m.pools {
		switch n := len(p.present(d.seen.Now)); {
		case p.Invalid != "":
			fmt.Fprintf(&b, " Pool %s cannot grow: its template is invalid.", short(p.key))
		case p.Taken != "":
			fmt.Fprintf(&b, " Pool %s cannot grow: %s", short(p.key), p.Taken)
		case p.Blocked != "" && n < p.limit():
			fmt.Fprintf(&b, " Pool %s cannot grow: %s", short(p.key), sentence(p.Blocked))
		case p.device > 0 && likely(known(m), p.key) > p.device:
			fmt.Fprintf(&b, " Another worker of pool %s would not help%s.", short(p.key), p.butForHeadroom(likely(known(m), p.key)))
		case p.Sole && n >= p.limit():
			fmt.Fprintf(&b, " Pool %s has the only worker that there can be: %s.", short(p.key), soleWorker)
		case n >= p.limit():
			fmt.Fprintf(&b, " Pool %s has %d of at most %s.", short(p.key), n, count(p.limit(), "worker"))
		}
	}
	return b.String() + d.ails(m)
}

// butForHeadroom says that only headroom keeps so many bytes from an empty device; empty: more does.
func (p *pool) butForHeadroom(need int64) string {
	kept := p.kept(p.device)
	if need-p.device > kept {
		return ""
	}
	return fmt.Sprintf(": spec.memory.headroom keeps %s of each device free (%d%%)", packing.Size(kept), p.headroom())
}

// waiting: a worker is coming, or none may come.
func (d *decision) waiting(m *model) status.Verdict {
	v := status.Verdict{Reason: v1alpha1.ReasonWaitingForWorker, Progressing: true}
	if m.why.Reserved > 0 {
		v.Message = m.why.String()
		return v
	}
	pools := m.pools
	if m.grows != nil {
		pools = []*pool{m.grows}
	}
	for _, p := range pools {
		for _, s := range p.stations {
			if s.starting() && s.Unschedulable != "" {
				v.Reason = v1alpha1.ReasonWaitingForNode
				v.Message = fmt.Sprintf("Pod %s waits for a node: %s", s.Name, sentence(s.Unschedulable))
				return v
			}
		}
	}
	for _, p := range pools {
		for _, s := range p.stations {
			if s.starting() && s.Waiting != "" {
				v.Message = fmt.Sprintf("Pod %s does not start: %s", s.Name, sentence(s.Waiting))
				return v
			}
		}
	}
	var b strings.Builder
	stuck, lasting := 0, 0 // pools that have no worker to come, and that none may come to unless somebody changes something
	for _, p := range pools {
		starting, going := 0, 0
		for _, s := range p.stations {
			if s.starting() {
				starting++
			} else if !s.Failed && (s.memory.Going != "" || !s.Deleting.IsZero()) {
				going++
			}
		}
		blocked := p.Blocked != "" && starting == 0
		starting += d.plan.Create[p.key]
		switch {
		case blocked:
			stuck++
			if p.Lasting {
				lasting++
			}
			fmt.Fprintf(&b, "Pool %s cannot make %s: %s ", short(p.key), p.one(d.seen.Now), sentence(p.Blocked))
		case starting > 0:
			fmt.Fprintf(&b, "Pool %s has no worker with room for it yet; %d %s starting. ", short(p.key), starting, verb(starting, "is", "are"))
		case going > 0:
			fmt.Fprintf(&b, "Pool %s replaces %s; the model comes back on the next one%s. ", short(p.key), count(going, "worker"), p.stillRuns(m.key))
		case p.barred() != "":
			lasting++
			fmt.Fprintf(&b, "Pool %s makes no workers: %s ", short(p.key), sentence(p.barred()))
		case len(p.present(d.seen.Now)) > 0:
			fmt.Fprintf(&b, "No worker of pool %s can be used now (%d of at most %d).%s ", short(p.key), len(p.present(d.seen.Now)), p.limit(), d.ails(m))
		default:
			if p.limit() == 0 {
				lasting++
			}
			fmt.Fprintf(&b, "Pool %s has no worker and may have %d; raise spec.workers.max. ", short(p.key), p.limit())
			v.Progressing = false
		}
	}
	v.Stalled = len(pools) > 0 && lasting == len(pools)
	v.Progressing = v.Progressing && stuck < len(pools) && !v.Stalled
	v.Message = strings.TrimSpace(b.String())
	return v
}

// stillRuns says how many requests for a model have to end before its worker is replaced.
func (p *pool) stillRuns(model string) string {
	n := 0
	for _, s := range p.stations {
		if s.Report == nil || s.Failed {
			continue
		}
		for _, h := range s.Report.Homes {
			if h.Model == model && s.homes[model] == nil {
				n += h.Running + h.Waiting
			}
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" once %s %s ended", count(n, "request"), verb(n, "has", "have"))
}

// one is the worker that p would have next.
func (p *pool) one(now time.Time) string {
	if len(p.present(now)) == 0 {
		return "a worker"
	}
	return "another worker"
}

// placed: m has as many homes as are wanted.
func (d *decision) placed(m *model, s v1alpha1.ModelStatus, v status.Verdict) *status.Part {
	if moves := d.moves(m); moves != nil {
		return moves
	}
	if int(s.Replicas) >= m.wanted && (m.wanted > 0 || m.heldBack() != nil) {
		message := ""
		for _, p := range s.Placements[:min(len(s.Placements), 3)] {
			message += " On worker " + p.Worker + ", device " + strings.Join(p.Devices, ", ") + ": " + cmp.Or(strings.TrimSuffix(p.Reason, "."), "it was there already") + "."
		}
		return &status.Part{True: true, Reason: v1alpha1.ReasonSucceeded, Message: strings.TrimSpace(message)}
	}
	has := fmt.Sprintf("%d of %s %s a home. ", s.Replicas, count(m.wanted, "replica"), verb(int(s.Replicas), "has", "have"))
	switch {
	case v.Ready && s.Replicas > 0 && m.missing > 0 && m.grows != nil:
		w := d.waiting(m)
		return &status.Part{Reason: w.Reason, Message: has + w.Message}
	case v.Ready && m.why.Devices() > 0:
		return &status.Part{Reason: v1alpha1.ReasonDoesNotFit, Message: has + m.why.String() + d.limits(m)}
	}
	return &status.Part{Reason: v.Reason, Message: v.Message}
}

func (d *decision) poolStatus(p *pool) v1alpha1.InferencePoolStatus {
	s := v1alpha1.InferencePoolStatus{
		ObservedGeneration: p.Generation,
		Selector:           v1alpha1.LabelPool + "=" + p.Name,
		Device:             p.Status.Device,
	}
	models := map[string]bool{}
	var capacity, used int64
	for _, w := range p.present(d.seen.Now) {
		s.Workers++
		for key := range w.homes {
			models[key] = true
		}
		if w.Report == nil {
			continue
		}
		if w.stays() && !w.silent && !w.crippled() { // a stream that is opened anew within that time is no news
			s.ReadyWorkers++
		}
		s.Devices += int32(len(w.Report.Devices))
		for i := range w.Report.Devices {
			if device := &w.Report.Devices[i]; !device.Lost() {
				capacity += device.CapacityBytes
				used += device.UsedBytes
			}
		}
		if w.current() && len(w.Report.Devices) > 0 && w.Report.Devices[0].Whole() > 0 {
			size := quantity(w.Report.Devices[0].Whole())
			s.Device = v1alpha1.DeviceStatus{Memory: &size, Template: w.Hash}
		}
	}
	s.Moves = d.asMoves(p)
	s.Models = int32(len(models))
	s.Memory = v1alpha1.MemoryStatus{Capacity: quantity(capacity), Allocated: quantity(used)}
	s.Summary = v1alpha1.PoolSummary{Workers: fmt.Sprintf("%d/%d", s.ReadyWorkers, s.Workers), Memory: brief(used) + " / " + brief(capacity)}
	all := d.accelerators(p)
	s.Accelerators = all[:min(len(all), mostAccelerators)]
	s.Summary.Utilization, s.Summary.Power = drawn(all)
	v := p.withBrake(p.withSole(d.poolVerdict(p, s)))
	v.Degraded = d.degradation(p)
	s.Conditions = v.Conditions(p.Status.Conditions, p.Generation, d.seen.Now)
	return s
}

// withSole adds that p asks for more workers than there can be.
func (p *pool) withSole(v status.Verdict) status.Verdict {
	field, n := "spec.workers.min", p.Spec.Workers.Min
	if r := p.Spec.Replicas; r != nil {
		field, n = "spec.replicas", *r
	}
	if !p.Sole || n <= 1 || v.Stalled {
		return v
	}
	v.Stalled, v.Progressing = true, false
	v.StalledBy = &status.Part{True: true, Reason: v1alpha1.ReasonWaitingForWorker,
		Message: fmt.Sprintf("%s is %d, and there can be one: %s. Set it to 1.", field, n, soleWorker)}
	return v
}

func (d *decision) poolVerdict(p *pool, s v1alpha1.InferencePoolStatus) status.Verdict {
	wanted := int(s.Workers) + d.plan.Create[p.key]
	for _, w := range p.present(d.seen.Now) {
		if w.memory.Going != "" || !w.Deleting.IsZero() {
			wanted--
		}
	}
	ready := int(s.ReadyWorkers)
	all := max(wanted, int(s.Workers))
	switch {
	case p.Invalid != "":
		return status.Verdict{Ready: s.ReadyWorkers > 0, Reason: v1alpha1.ReasonInvalidTemplate, Stalled: true, Message: sentence(p.Invalid) + " Mend spec.template."}
	case p.Taken != "":
		return status.Verdict{Ready: s.ReadyWorkers > 0, Reason: v1alpha1.ReasonNameConflict, Stalled: true, Message: p.Taken}
	case s.Workers == 0 && wanted == 0 && p.Blocked == "":
		return status.Verdict{Ready: true, Reason: v1alpha1.ReasonScaledToZero, Message: "There is no worker; a Model that needs one starts it."}
	case ready >= max(wanted, 1):
		v := status.Verdict{Ready: true, Reason: v1alpha1.ReasonServing, Message: fmt.Sprintf("%s %s assignments.", count(ready, "worker"), verb(ready, "takes", "take"))}
		v.Progressing = int(s.Workers) != wanted
		if p.Unchecked != "" && slices.ContainsFunc(p.stations, func(w *station) bool { return !w.current() }) {
			v.Progressing = true
			v.Message += " The template has changed, and workers of the last one stay until the API server takes the new one: " + sentence(p.Unchecked)
		}
		return v
	}
	v := status.Verdict{Ready: ready > 0, Reason: v1alpha1.ReasonWaitingForWorker, Progressing: true,
		Message: fmt.Sprintf("%d of %s %s ready.", ready, count(all, "worker"), verb(all, "is", "are"))}
	if p.Blocked != "" {
		v.Stalled, v.Progressing = p.Lasting, !p.Lasting
		if s.Workers == 0 {
			v.Message = "There is no worker, and none can be made: " + sentence(p.Blocked)
		} else {
			v.Message += " Another one cannot be made: " + sentence(p.Blocked)
		}
		return v
	}
	for _, w := range p.stations {
		if !w.starting() {
			if ready == 0 && w.stays() && w.crippled() {
				reason, why := w.cripple()
				v.Reason, v.Message = reason, v.Message+" "+why
				return v
			}
			continue
		}
		switch {
		case w.Unschedulable != "":
			v.Reason, v.Message = v1alpha1.ReasonWaitingForNode, v.Message+fmt.Sprintf(" Pod %s waits for a node: %s", w.Name, sentence(w.Unschedulable))
			return v
		case w.Waiting != "":
			v.Message += fmt.Sprintf(" Pod %s does not start: %s", w.Name, sentence(w.Waiting))
			return v
		}
	}
	return v
}
