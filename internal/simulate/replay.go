package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/history"
	"github.com/estiba/estiba/internal/policy/packing"
)

// Replayed is what came of a history under one policy.
type Replayed struct {
	Policy    string `json:"policy"`
	Decisions int    `json:"decisions"`
	Placed    int    `json:"placed"`  // homes that were new
	Moves     int    `json:"moves"`   // that began
	Removed   int    `json:"removed"` // homes that ended, of Models that are still there
	// What follows are means over the time of the history.
	Homes         float64 `json:"homes"`
	Unplaced      float64 `json:"unplaced"` // homes that were wanted and that there were not
	Devices       float64 `json:"devices"`
	Used          float64 `json:"devices_used"`          // with a home
	Fragmentation float64 `json:"fragmentation_percent"` // expected share of all memory that is free and of no use to the Models there are
	P50           float64 `json:"decision_p50_ms"`
	P99           float64 `json:"decision_p99_ms"`

	seconds   float64
	decisions []time.Duration
}

// Check is whether the decisions of a history come out as they were recorded.
type Check struct {
	Decisions   int      `json:"decisions"`
	Equal       int      `json:"equal"`
	Differences []string `json:"differences,omitempty"` // the first ones
}

// ReplayOptions of Replay.
type ReplayOptions struct {
	History  string          // a file, or a folder of them; empty: From
	From     history.Options // whom to ask
	Policies []string        // Own or of Scores
	JSON     bool
}

// ReplayReport is what Replay writes as JSON.
type ReplayReport struct {
	From     time.Time  `json:"from"`
	To       time.Time  `json:"to"`
	Check    Check      `json:"check"`
	Policies []Replayed `json:"policies"`
}

// Scores are the policies that can be tried on a history, beside Own. They know
// bytes and homes, which is what a Model needs; those of the published simulator
// that weigh processors have no meaning here.
var Scores = map[string]packing.Score{
	"BestFit":  func(at packing.View, _ *packing.Want) float64 { return -free(at) },
	"WorstFit": func(at packing.View, _ *packing.Want) float64 { return free(at) },
	"FirstFit": func(packing.View, *packing.Want) float64 { return 0 },
	"Spread":   func(at packing.View, _ *packing.Want) float64 { return -float64(homes(at)) },
	"Random":   func(at packing.View, w *packing.Want) float64 { return draw(at, w.Model) },
}

// Replay decides a history again, decision by decision: first each as it was
// seen, which must come out as it was recorded; then, for each policy, with its
// own homes. Progress goes to stderr. It is an error if decisions come out otherwise.
func Replay(ctx context.Context, stdout, stderr io.Writer, o ReplayOptions) error {
	return ended(ctx, runReplay(ctx, stdout, stderr, o))
}

func runReplay(ctx context.Context, stdout, stderr io.Writer, o ReplayOptions) error {
	for _, p := range o.Policies {
		if p != Own && Scores[p] == nil {
			return fmt.Errorf("no policy %s: there are %s, and %s", p, Own, strings.Join(slices.Sorted(maps.Keys(Scores)), ", "))
		}
	}
	read, end, err := o.open(ctx, stderr)
	if err != nil {
		return err
	}
	defer end()
	r := ReplayReport{}
	var worlds []*world
	for _, p := range o.Policies {
		worlds = append(worlds, &world{Replayed: Replayed{Policy: p}, score: Scores[p]})
	}
	var before *history.Decision
	var left controllers.Memory // by the decision before
	told := time.Now()
	err = read(func(d history.Decision) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if before == nil {
			r.From = d.Seen.Now
		} else if d.Seq == before.Seq+1 {
			r.Check.memory(d, left)
		}
		plan := controllers.Decide(d.Seen)
		r.Check.plan(d, plan)
		for _, w := range worlds {
			w.step(d.Seen)
		}
		before, left, r.To = &d, plan.Memory, d.Seen.Now
		if time.Since(told) > time.Second {
			told = time.Now()
			fmt.Fprintf(stderr, "%d decisions, up to %s\n", r.Check.Decisions, r.To.UTC().Format(time.RFC3339))
		}
		return nil
	})
	if errors.Is(err, history.ErrCutOff) {
		fmt.Fprintf(stderr, "warning: %v\n", err)
	} else if err != nil {
		return err
	}
	if r.Check.Decisions == 0 {
		return errors.New("the history holds no decision")
	}
	for _, w := range worlds {
		r.Policies = append(r.Policies, w.sum())
	}
	if err := r.write(stdout, o.JSON); err != nil {
		return err
	}
	if n := r.Check.Decisions - r.Check.Equal; n > 0 {
		return fmt.Errorf("%d of %d decisions come out otherwise than they were recorded: another version of estiba made them, or a decision depends on what is not recorded", n, r.Check.Decisions)
	}
	return nil
}

// open gives what reads the history. One that is fetched is kept in a file meanwhile.
func (o ReplayOptions) open(ctx context.Context, stderr io.Writer) (read func(func(history.Decision) error) error, end func(), err error) {
	if o.History != "" {
		return func(each func(history.Decision) error) error { return history.ReadPath(ctx, o.History, each) }, func() {}, nil
	}
	f, err := os.CreateTemp("", "estiba-history-")
	if err != nil {
		return nil, nil, err
	}
	end = func() { f.Close(); os.Remove(f.Name()) }
	fmt.Fprintln(stderr, "fetching the history")
	if err := history.Fetch(ctx, o.From, f); err != nil {
		end()
		return nil, nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		end()
		return nil, nil, err
	}
	return func(each func(history.Decision) error) error { return history.Read(f, each) }, end, nil
}

// differencesShown of a check.
const differencesShown = 10

// plan compares what a decision comes to with what was recorded.
func (c *Check) plan(d history.Decision, plan controllers.Plan) {
	c.Decisions++
	verdicts := map[string]string{}
	for i := range plan.Models {
		verdicts[controllers.Key(&d.Seen.Models[i])] = history.Verdict(plan.Models[i])
	}
	differ := unlike("Model", d.Verdicts, verdicts)
	plan.Models, plan.Pools, plan.Memory = nil, nil, controllers.Memory{}
	was, is := reflect.ValueOf(d.Plan), reflect.ValueOf(plan)
	for i := range is.NumField() {
		name := is.Type().Field(i).Name
		differ = append(differ, unlikeField(name, was.Field(i).Interface(), is.Field(i).Interface())...)
	}
	if len(differ) == 0 {
		c.Equal++
	}
	c.note(d, differ)
}

// memory compares what is remembered with what the decision before left.
func (c *Check) memory(d history.Decision, left controllers.Memory) {
	was, is := reflect.ValueOf(d.Seen.Memory), reflect.ValueOf(left)
	var differ []string
	for i := range is.NumField() {
		name := "Memory." + is.Type().Field(i).Name
		differ = append(differ, unlikeField(name, was.Field(i).Interface(), is.Field(i).Interface())...)
	}
	if len(differ) > 0 {
		c.Equal-- // the one before
		c.note(d, differ)
	}
}

func (c *Check) note(d history.Decision, differ []string) {
	for _, what := range differ {
		if len(c.Differences) < differencesShown {
			c.Differences = append(c.Differences, fmt.Sprintf("decision %d (%s): %s", d.Seq, d.Seen.Now.UTC().Format(time.RFC3339Nano), what))
		}
	}
}

// unlikeField names what differs in a part of a plan: of a map, the keys.
func unlikeField(name string, was, is any) []string {
	a, b := entries(was), entries(is)
	if a == nil || b == nil {
		a, b = map[string]json.RawMessage{"": text(was)}, map[string]json.RawMessage{"": text(is)}
	}
	return unlike(name, a, b)
}

func unlike[V ~string | ~[]byte](name string, was, is map[string]V) (differ []string) {
	keys := map[string]bool{}
	for k := range was {
		keys[k] = true
	}
	for k := range is {
		keys[k] = true
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		a, b := string(was[k]), string(is[k])
		if a != b && !empty(a) != !empty(b) || a != b && !empty(a) {
			differ = append(differ, strings.TrimSpace(fmt.Sprintf("%s %s: %s, and it was %s", name, k, brief(b), brief(a))))
		}
	}
	return differ
}

// empty: absent, or what JSON has for nothing.
func empty(s string) bool { return slices.Contains([]string{"", "null", "{}", "[]", "0"}, s) }

func brief(s string) string {
	switch {
	case empty(s):
		return "nothing"
	case len(s) > 200:
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// entries of a map, in JSON; nil: it is none.
func entries(v any) map[string]json.RawMessage {
	if reflect.TypeOf(v).Kind() != reflect.Map {
		return nil
	}
	all := map[string]json.RawMessage{}
	if json.Unmarshal(text(v), &all) != nil {
		return nil
	}
	return all
}

func text(v any) json.RawMessage {
	t, err := json.Marshal(v)
	if err != nil {
		return json.RawMessage(err.Error())
	}
	return bytes.TrimSpace(t)
}

// world is a history as it would have gone under one policy: the same Models,
// workers and demand, and homes of its own. Workers do at once as they are told.
type world struct {
	Replayed
	score  packing.Score
	begun  bool
	memory controllers.Memory
	told   map[string]worker.Assignment // worker -> ...
	since  map[string]time.Time         // "worker model" -> when it came to the device
	known  map[string]worker.HomeState  // model -> what any worker ever reported of it
	last   time.Time
	now    controllers.Measure
}

// step is one decision.
func (w *world) step(seen controllers.Seen) {
	if !seen.Settled {
		return
	}
	if !w.begun {
		w.begin(seen)
	}
	w.learn(seen)
	w.pass(seen.Now)
	seen.Workers = slices.Clone(seen.Workers)
	for i := range seen.Workers {
		w.report(&seen.Workers[i], seen.Now)
	}
	seen.Sent, seen.Memory, seen.Score = nil, w.memory, w.score
	start := time.Now()
	plan, measure := controllers.DecideAndMeasure(seen)
	w.decisions = append(w.decisions, time.Since(start))
	w.now = measure
	w.Decisions++
	w.Moves += len(plan.Moves)
	w.carryOut(seen, plan)
}

// begin with the homes of the first decision.
func (w *world) begin(seen controllers.Seen) {
	w.begun, w.memory = true, seen.Memory
	w.told, w.since, w.known = map[string]worker.Assignment{}, map[string]time.Time{}, map[string]worker.HomeState{}
	for i := range seen.Workers {
		at := &seen.Workers[i]
		if at.Report == nil {
			continue
		}
		a := seen.Memory.Workers[at.Name].Assigned
		if a.Instance != at.Report.Instance {
			a = worker.Assignment{Epoch: at.Report.Epoch, Generation: at.Report.Generation, Instance: at.Report.Instance}
			for _, h := range at.Report.Homes {
				a.Homes = append(a.Homes, worker.Home{Model: h.Model, Revision: h.Revision, Devices: h.Devices, Resident: h.WantResident})
			}
		}
		w.told[at.Name] = a
	}
}

// learn what models need, from whatever worker held them.
func (w *world) learn(seen controllers.Seen) {
	for i := range seen.Workers {
		if r := seen.Workers[i].Report; r != nil {
			for _, h := range r.Homes {
				w.known[h.Model] = h
			}
		}
	}
}

// pass counts the time since the last decision.
func (w *world) pass(now time.Time) {
	if !w.last.IsZero() {
		t := max(now.Sub(w.last).Seconds(), 0)
		w.seconds += t
		w.Homes += t * float64(w.now.Homes)
		w.Unplaced += t * float64(w.now.Unplaced)
		w.Devices += t * float64(w.now.Devices)
		w.Used += t * float64(w.now.Used)
		if w.now.Capacity > 0 {
			w.Fragmentation += t * 100 * w.now.Fragmentation / float64(w.now.Capacity)
		}
	}
	w.last = now
}

// report gives a worker the homes that it has in this world. Another process holds nothing.
func (w *world) report(at *controllers.Worker, now time.Time) {
	if at.Report == nil {
		return
	}
	r := *at.Report
	a := w.told[at.Name]
	if a.Instance != r.Instance {
		a = worker.Assignment{Instance: r.Instance}
		w.told[at.Name] = a
	}
	r.Epoch, r.Generation, r.Draining = a.Epoch, a.Generation, a.Drain
	r.Devices, r.Homes = slices.Clone(r.Devices), nil
	for i := range r.Devices {
		r.Devices[i].UsedBytes = 0
	}
	for _, told := range a.Homes {
		if told.Draining {
			continue
		}
		h := w.home(at, told, now)
		if h.Phase == worker.PhaseResident {
			for i := range r.Devices {
				if slices.Contains(h.Devices, r.Devices[i].Name) {
					r.Devices[i].UsedBytes += h.Footprint.Total()
				}
			}
		}
		r.Homes = append(r.Homes, h)
	}
	at.Report, at.Refusal = &r, nil
}

// home is how a worker of this world has a model: as somebody had it in the history, on its device if it is told so or
// is asked for.
func (w *world) home(at *controllers.Worker, told worker.Home, now time.Time) worker.HomeState {
	h := w.known[told.Model]
	awake := told.Resident || h.Phase == worker.PhaseResident
	h.Model, h.Revision, h.Devices, h.WantResident = told.Model, told.Revision, told.Devices, told.Resident
	h.Reason, h.Message, h.Progress = "", "", 0
	key := at.Name + " " + told.Model
	if !awake {
		delete(w.since, key)
		h.Phase, h.Tier, h.ResidentSeconds = worker.PhaseIdle, worker.TierDisk, 0
		return h
	}
	if w.since[key].IsZero() {
		w.since[key] = now
		if h.ResidentSeconds > 0 && w.Decisions == 0 { // it had been there before
			w.since[key] = now.Add(-time.Duration(h.ResidentSeconds * float64(time.Second)))
		}
	}
	h.Phase, h.Tier, h.ResidentSeconds = worker.PhaseResident, worker.TierDevice, now.Sub(w.since[key]).Seconds()
	return h
}

// carryOut does what a plan says, and counts it. Pods come and go as in the history.
func (w *world) carryOut(seen controllers.Seen, plan controllers.Plan) {
	w.memory = plan.Memory
	there := map[string]bool{}
	for i := range seen.Models {
		there[controllers.Key(&seen.Models[i])] = true
	}
	for name, a := range plan.Assignments {
		had := map[string]bool{}
		for _, h := range w.told[name].Homes {
			had[h.Model] = true
		}
		has := map[string]bool{}
		for _, h := range a.Homes {
			has[h.Model] = true
			if !had[h.Model] {
				w.Placed++
			}
		}
		for model := range had {
			if !has[model] {
				delete(w.since, name+" "+model)
				if there[model] {
					w.Removed++
				}
			}
		}
		w.told[name] = a
	}
}

// sum makes means of sums.
func (w *world) sum() Replayed {
	r := w.Replayed
	for _, mean := range []*float64{&r.Homes, &r.Unplaced, &r.Devices, &r.Used, &r.Fragmentation} {
		if w.seconds > 0 {
			*mean /= w.seconds
		}
	}
	if w.seconds == 0 { // one decision
		r.Homes, r.Unplaced, r.Devices, r.Used = float64(w.now.Homes), float64(w.now.Unplaced), float64(w.now.Devices), float64(w.now.Used)
	}
	slices.Sort(w.decisions)
	r.P50, r.P99 = quantileMillis(w.decisions, 50), quantileMillis(w.decisions, 99)
	return r
}

func quantileMillis(sorted []time.Duration, percent int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[(len(sorted)-1)*percent/100].Microseconds()) / 1000
}

func (r ReplayReport) write(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	fmt.Fprintf(w, "%d decisions from %s to %s; %d come out as they were recorded.\n", r.Check.Decisions, r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339), r.Check.Equal)
	for _, d := range r.Check.Differences {
		fmt.Fprintln(w, d)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POLICY\tPLACED\tMOVES\tREMOVED\tHOMES\tUNPLACED\tDEVICES IN USE\tFRAGMENTATION\tDECISION P50\tP99")
	for _, p := range r.Policies {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%.1f\t%.1f\t%.1f of %.1f\t%.2f %%\t%.2f ms\t%.2f ms\n",
			p.Policy, p.Placed, p.Moves, p.Removed, p.Homes, p.Unplaced, p.Used, p.Devices, p.Fragmentation, p.P50, p.P99)
	}
	return t.Flush()
}

// free is what the devices on which w would come have left, in bytes.
func free(at packing.View) (n float64) {
	for i := range at.Devices() {
		if at.Chosen(i) {
			n += float64(at.Free(i))
		}
	}
	return n
}

// homes that those devices have.
func homes(at packing.View) (n int) {
	for i := range at.Devices() {
		if at.Chosen(i) {
			n += at.Homes(i)
		}
	}
	return n
}

// draw is a number from 0 to 1 that a model draws for a worker's devices: the same each time.
func draw(at packing.View, model string) float64 {
	h := uint64(14695981039346656037) // FNV-1a
	add := func(s string) {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	add(model)
	add(at.Worker().Name)
	for i := range at.Devices() {
		if at.Chosen(i) {
			add(at.Device(i).Name)
		}
	}
	return float64(h>>11) / (1 << 53)
}
