package controllers

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/policy/packing"
)

// The one sentence of an explanation, and how long things take.

// sentence says where m is, or why it is nowhere.
func (d *decision) sentence(m *model, e Explanation) string {
	name, at := "Model "+m.key, places(e.Homes)
	has := len(m.homes) > 0
	switch {
	case e.DryRun:
		return d.would(m, e)
	case !has && (m.off() != "" || m.wanted == 0):
		return name + " has no home: " + d.why(m, e)
	case !has && m.room != nil:
		return name + " is nowhere yet: " + lower(e.Message)
	case !has && e.Ready:
		return name + " has no home, and needs none now: " + lower(e.Message)
	case !has:
		return name + " is nowhere: " + d.nowhere(m, e)
	case e.Ready && e.Reason == v1alpha1.ReasonScaledToZero:
		return fmt.Sprintf("%s sleeps at its home %s; a request wakes it.", name, at) + d.fewer(m, e) + e.stall()
	case e.Ready:
		return fmt.Sprintf("%s answers requests on %s.", name, at) + m.note + d.changes(m) + d.fewer(m, e) + e.stall()
	case e.Reason == v1alpha1.ReasonNameConflict:
		return fmt.Sprintf("%s is at %s, but does not answer to all of its names: %s", name, at, lower(e.Message))
	case e.Reason == v1alpha1.ReasonLoading:
		return fmt.Sprintf("%s is on its way to %s: %s", name, at, lower(e.Message))
	}
	return fmt.Sprintf("%s has a home, %s, and answers no requests: %s", name, at, lower(e.Message))
}

// would is the sentence about a Model that is not applied.
func (d *decision) would(m *model, e Explanation) string {
	name := "Model " + m.key
	switch {
	case m.off() != "" || m.wanted == 0:
		return name + " would have no home: " + d.why(m, e)
	case len(m.homes) == 0 && m.room != nil:
		return fmt.Sprintf("%s would get room on %s/%s as soon as others have left it: %s", name, m.room.Worker, strings.Join(m.room.Devices, ","), lower(e.Message))
	case len(m.homes) == 0 && e.Ready:
		return name + " would have no home, and need none at first: " + lower(e.Message)
	case len(m.homes) == 0 && (e.Reason == v1alpha1.ReasonWaitingForNode || e.Reason == v1alpha1.ReasonWaitingForWorker):
		return name + " would be nowhere at first: " + d.why(m, e)
	case len(m.homes) == 0:
		return name + " would be nowhere: " + d.nowhere(m, e)
	}
	verb := "go to"
	if m.homes[0].told != nil {
		verb = "stay on"
	}
	asleep := ""
	if m.awake == 0 {
		asleep = ", and sleep there until a request comes"
	}
	return fmt.Sprintf("%s would %s %s%s.", name, verb, places(e.Homes), asleep) + d.fewer(m, e)
}

// stall is what stalls a model that answers.
func (e Explanation) stall() string {
	if e.Stall == "" {
		return ""
	}
	return " " + e.Stall
}

// changes says that m moves.
func (d *decision) changes(m *model) string {
	if moves := d.moves(m); moves != nil {
		return " It" + strings.TrimPrefix(lower(moves.Message), "it")
	}
	return ""
}

// fewer says that m has fewer homes than it wants.
func (d *decision) fewer(m *model, e Explanation) string {
	if m.missing == 0 {
		return ""
	}
	return fmt.Sprintf(" It wants %s and has %d: %s", count(m.wanted, "home"), m.wanted-m.missing, d.crowded(m))
}

// places are where a model is: homes on their way in or out only if there are no others.
func places(stays []Stay) string {
	var at, other []string
	for _, s := range stays {
		here := s.at() + " (" + packing.Size(s.Bytes) + ")"
		switch s.State {
		case v1alpha1.PlacementDraining, v1alpha1.PlacementAssigned, v1alpha1.PlacementLoading:
			other = append(other, here)
		default:
			at = append(at, here)
		}
	}
	if len(at) == 0 {
		at = other
	}
	return list(at)
}

// why m is nowhere, with the numbers that decide.
func (d *decision) why(m *model, e Explanation) string {
	switch e.Reason {
	case v1alpha1.ReasonSuspended:
		if m.Spec.Suspend {
			return "spec.suspend is true. Requests are answered with an error."
		}
		return "spec.replicas is 0. Requests are answered with an error."
	case v1alpha1.ReasonNoPoolMatches:
		if len(d.pools) == 0 {
			return "there is no InferencePool."
		}
		if len(d.pools) == 1 {
			return "the only InferencePool may not hold it."
		}
		return fmt.Sprintf("none of the %d InferencePools may hold it.", len(d.pools))
	case v1alpha1.ReasonDoesNotFit:
		return d.crowded(m)
	case v1alpha1.ReasonEvicted:
		if g := m.gave; g != nil {
			return fmt.Sprintf("it gave up %s on worker %s to %s (priority %d, this one %d); %s", packing.Size(g.Bytes), g.Worker, g.To, g.Priority, g.Own, d.crowded(m))
		}
	case v1alpha1.ReasonWaitingForNode, v1alpha1.ReasonWaitingForWorker:
		if n := len(m.need); n > 0 {
			return "it needs " + packing.Size(smallestNeed(m)) + ". " + e.Message
		}
	}
	return lower(e.Message)
}

// crowded says what m needs, and what there is.
func (d *decision) crowded(m *model) string {
	if len(m.need) == 0 {
		return "nobody has read yet how much it needs."
	}
	need, y := packing.Size(smallestNeed(m)), m.why
	headroom := ""
	if s, ok := d.headroom(m); ok {
		headroom = fmt.Sprintf("; headroom keeps another %s free there (%d%%, spec.memory.headroom of pool %s)", packing.Size(s.kept), s.pool.headroom(), s.pool.key)
	}
	switch {
	case y.Devices() == 0 || m.tooLarge():
		return fmt.Sprintf("it needs %s, and the largest device of its pools has %s%s.", need, packing.Size(max(largestDevice(m), y.LargestCapacity)), headroom)
	case d.stillOn(m):
		return fmt.Sprintf("it needs %s, and no worker but the one that it leaves could hold it.", need)
	case y.FreeOn == "":
		return fmt.Sprintf("it needs %s, and every worker that could hold it holds a replica already or is on its way out.", need)
	case y.LargestFree >= smallestNeed(m):
		return fmt.Sprintf("it needs %s, and none of %s may take it, although %s has %s of %s free.", need, count(y.Devices(), "device"), y.FreeOn, packing.Size(y.LargestFree), packing.Size(y.FreeOf))
	}
	return fmt.Sprintf("it needs %s, and the largest free device, %s, has %s of %s%s.", need, y.FreeOn, packing.Size(y.LargestFree), packing.Size(y.FreeOf), headroom)
}

// nowhere is why m is nowhere, with what is the matter with the devices that there are.
func (d *decision) nowhere(m *model, e Explanation) string {
	why, ails := d.why(m, e), d.ails(m)
	if strings.Contains(why, strings.TrimSpace(ails)) {
		return why
	}
	return why + ails
}

// lower begins a sentence that goes on after a colon: "Needs" is "it needs", "The" is "the", names stay.
func lower(s string) string {
	word, _, _ := strings.Cut(s, " ")
	small := strings.ToLower(s[:min(1, len(s))]) + s[min(1, len(s)):]
	switch word {
	case "Needs", "Gave", "Moves":
		return "it " + small
	case "A", "An", "The", "None", "There", "Running", "Requests", "Refused", "Fetching", "Loading", "Waits", "Worker", "Pool", "Pod", "No", "Nothing", "Assigned", "Another":
		return small
	}
	return s
}

// times are the spans that somebody who waits asks about.
func (d *decision) times(m *model, e Explanation) []Span {
	var all []Span
	add := func(what string, seconds float64, because string) {
		all = append(all, Span{what, max(0, seconds), because})
	}
	for _, p := range m.pools {
		for _, s := range p.stations {
			if since := s.memory.DrainedSince; !since.IsZero() && s.has(m.key) {
				drain := orElse(p.Spec.Update.Drain, defaultDrain)
				add("until worker "+s.Name+" has let go, at most", since.Add(drain).Sub(d.seen.Now).Seconds(), "spec.update.drain is "+drain.String())
			}
		}
	}
	for _, h := range m.homes {
		p := h.station.pool
		s, because, known := d.loads(m, p)
		switch state := h.placement(); {
		case h.leaving():
		case state == v1alpha1.PlacementLoading && known:
			add("until it is loaded, about", s*(1-h.state.Progress), because)
		case state == v1alpha1.PlacementAssigned && known:
			add("to load it, about", s, because)
		case (state == v1alpha1.PlacementHost || state == v1alpha1.PlacementDisk) && known:
			add("to wake it, about", s, because)
		case state == v1alpha1.PlacementResident && m.sleeps() && h.state.Running+h.state.Waiting == 0 && !h.awake:
			idle := d.stay(h).IdleSeconds
			add("until it may go to sleep", m.idleAfter().Seconds()-idle, fmt.Sprintf("spec.autoscaling.idleAfter is %v, and the last request ended %s ago", m.idleAfter(), span(idle)))
		}
	}
	if d.lacks(m) && !e.Stalled {
		for _, p := range m.pools {
			if s, because, known := d.loads(m, p); known {
				add("to load it, once it has a home in pool "+p.key+", about", s, because)
				break
			}
		}
	}
	if e.Moves != nil && e.Moves.RefillSeconds > 0 {
		add("until the next move may be made", e.Moves.RefillSeconds, fmt.Sprintf("spec.moves allows %d an hour, and %d are left", e.Moves.PerHour, e.Moves.Left))
	}
	return all
}

// loads estimates how long m takes to get onto a device of p: as its last load
// there did, or by its weights and the speed of other loads in the pool.
func (d *decision) loads(m *model, p *pool) (seconds float64, because string, known bool) {
	var speeds []float64 // bytes a second
	for _, s := range p.stations {
		if s.Report == nil {
			continue
		}
		for _, h := range s.Report.Homes {
			switch {
			case h.LoadSeconds <= 0:
			case h.Model == m.key && h.Revision == m.revision:
				return h.LoadSeconds, "its last load on " + s.Name + " took so long", true
			case h.Footprint.WeightsBytes > 0:
				speeds = append(speeds, float64(h.Footprint.WeightsBytes)/h.LoadSeconds)
			}
		}
	}
	weights := m.need.in(p.key).WeightsBytes
	if len(speeds) == 0 || weights == 0 {
		return 0, "", false
	}
	slices.Sort(speeds)
	speed := speeds[len(speeds)/2]
	of := "the last load in the pool was that fast"
	if len(speeds) > 1 {
		of = fmt.Sprintf("the median of %d loads in the pool", len(speeds))
	}
	return float64(weights) / speed, fmt.Sprintf("%s of weights at %s/s, %s", packing.Size(weights), packing.Size(int64(speed)), of), true
}

// span writes seconds for people: 0.4 s, 12 s, 3m20s, 2h5m, 3d4h.
func span(seconds float64) string {
	switch t := time.Duration(seconds * float64(time.Second)); {
	case seconds < 0.05:
		return fmt.Sprintf("%d ms", int(math.Ceil(seconds*1000)))
	case seconds < 10:
		return strings.Replace(fmt.Sprintf("%.1f s", seconds), ".0 ", " ", 1)
	case seconds < 120:
		return fmt.Sprintf("%.0f s", seconds)
	case t < time.Hour:
		return strings.TrimSuffix(t.Round(time.Second).String(), "0s")
	case t < 48*time.Hour:
		return strings.TrimSuffix(strings.TrimSuffix(t.Round(time.Minute).String(), "0s"), "0m")
	default:
		return fmt.Sprintf("%dd%dh", int(t.Hours())/24, int(t.Hours())%24)
	}
}

// unknown says that there is no such Model, and which names are like it.
func unknown(seen Seen, key string) Explanation {
	near := likeIt(seen.Models, key)
	e := Explanation{Model: key, Reason: ReasonNotFound, Near: near}
	e.Answer = "There is no Model " + key + "."
	switch {
	case len(near) > 0:
		e.Answer += " Did you mean " + strings.Join(near, " or ") + "?"
	case len(seen.Models) == 0:
		e.Answer += " There is no Model at all."
	default:
		e.Answer += " There " + verb(len(seen.Models), "is ", "are ") + list(keys(seen.Models)) + "."
	}
	e.Message = e.Answer
	return e
}

func keys(models []v1alpha1.Model) []string {
	var all []string
	for i := range models {
		all = append(all, Key(&models[i]))
	}
	slices.Sort(all)
	return all
}

// likeIt are up to three Models whose names, or served names, are like the one of key.
func likeIt(models []v1alpha1.Model, key string) []string {
	type like struct {
		key  string
		cost int
	}
	name := short(key)
	var all []like
	for i := range models {
		m := &models[i]
		best := 1 << 30
		for _, n := range append([]string{m.Name}, m.Spec.ServedNames...) {
			c := distance(n, name)
			if strings.Contains(n, name) || strings.Contains(name, n) {
				c = min(c, 2)
			}
			best = min(best, c)
		}
		if best <= max(2, len(name)/3) {
			all = append(all, like{Key(m), best})
		}
	}
	slices.SortFunc(all, func(a, b like) int { return cmp.Or(cmp.Compare(a.cost, b.cost), cmp.Compare(a.key, b.key)) })
	var keys []string
	for _, l := range all[:min(len(all), 3)] {
		keys = append(keys, l.key)
	}
	return keys
}

// distance is how many letters have to be changed, put in or left out (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
