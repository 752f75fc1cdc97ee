package controllers

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/status"
)

// Stowage says of one pool what is where: its devices with the models on them,
// what is free, and which models look for a home in it.
type Stowage struct {
	Pool    string `json:"pool"` // "namespace/name"
	Ready   bool   `json:"ready"`
	Stalled bool   `json:"stalled,omitempty"`
	Reason  string `json:"reason"` // of condition Stalled if that is true, else of Ready
	Message string `json:"message,omitempty"`

	Workers      int `json:"workers"`
	ReadyWorkers int `json:"readyWorkers"`
	Min          int `json:"min"`
	Max          int `json:"max"`

	Capacity    int64 `json:"capacityBytes"`
	Used        int64 `json:"usedBytes"`        // on devices now
	Kept        int64 `json:"keptBytes"`        // for homes that are not on their devices now: those that sleep, wait, or are on their way
	Free        int64 `json:"freeBytes"`        // for new homes, over all devices
	LargestFree int64 `json:"largestFreeBytes"` // on one device: what is larger does not fit
	// Moves that spec.moves still allows within this hour, of how many.
	MovesLeft    int `json:"movesLeft"`
	MovesPerHour int `json:"movesPerHour"`

	Devices []Deck    `json:"devices"`
	Pending []Pending `json:"pending,omitempty"`
}

// Deck is a device with what is on it. A worker without a report has one without a name.
type Deck struct {
	Worker   string  `json:"worker"`
	Device   string  `json:"device,omitempty"`
	Kind     string  `json:"kind,omitempty"`
	Capacity int64   `json:"capacityBytes"`
	Used     int64   `json:"usedBytes"` // on the device now
	Kept     int64   `json:"keptBytes"` // for homes that are not on the device now
	Free     int64   `json:"freeBytes"` // for new homes
	Load     float64 `json:"load"`      // share of its time, 0 to 1
	// Outside is what other processes take of what models might use.
	Outside int64 `json:"outsideBytes,omitempty"`
	MIG     bool  `json:"mig,omitempty"` // it is an instance of a GPU, and has no power of its own
	// Unwatched: it is a GPU whose instruments nobody reads.
	Unwatched bool `json:"unwatched,omitempty"`
	// Health and Readings are what the device's own instruments say; nothing where it has none.
	Health   worker.Health    `json:"health,omitzero"`
	Missing  string           `json:"missing,omitempty"` // what the worker was to be given and was not
	Readings *worker.Readings `json:"readings,omitempty"`
	// State is empty for a worker that takes homes; else it says why it does not.
	State string `json:"state,omitempty"`
	Homes []Stay `json:"homes,omitempty"`
}

// Pending is a model that looks for a home.
type Pending struct {
	Model  string `json:"model"`
	Need   int64  `json:"needBytes,omitempty"` // 0: unknown
	Reason string `json:"reason"`
	Why    string `json:"why"` // one line
}

// StowageOf tells of every pool what is where, by the decision that Decide makes of seen.
func StowageOf(seen Seen) []Stowage {
	if !seen.Settled {
		return nil
	}
	d := decide(seen)
	var all []Stowage
	for _, key := range sortedKeys(d.pools) {
		all = append(all, d.stowage(d.pools[key]))
	}
	return all
}

func (d *decision) stowage(p *pool) Stowage {
	s := Stowage{Pool: p.key, Min: p.least(), Max: p.limit(), MovesLeft: p.left.moves, MovesPerHour: p.movesPerHour()}
	is := d.poolStatusOf(p)
	s.Workers, s.ReadyWorkers = int(is.Workers), int(is.ReadyWorkers)
	if c := status.Find(is.Conditions, v1alpha1.ConditionReady); c != nil {
		s.Ready, s.Reason, s.Message = c.Status == "True", c.Reason, c.Message
	}
	if c := status.Find(is.Conditions, v1alpha1.ConditionStalled); c != nil && c.Status == "True" {
		s.Stalled, s.Reason, s.Message = true, c.Reason, c.Message
	}
	for _, w := range p.present(d.seen.Now) {
		for _, deck := range d.decks(w) {
			s.Devices = append(s.Devices, deck)
			if deck.Health.State == worker.DeviceLost {
				continue
			}
			s.Capacity += deck.Capacity
			s.Used += deck.Used
			s.Kept += deck.Kept
			s.Free += deck.Free
			s.LargestFree = max(s.LargestFree, deck.Free)
		}
	}
	for _, m := range d.models {
		if d.lacks(m) && slices.Contains(m.pools, p) {
			s.Pending = append(s.Pending, d.pending(m, len(s.Pending) < lookedFor))
		}
	}
	return s
}

// lookedFor is for how many models that wait all devices are looked at; the others
// are told about by what their status says.
const lookedFor = 50

func (d *decision) poolStatusOf(p *pool) v1alpha1.InferencePoolStatus {
	for i := range d.seen.Pools {
		if d.seen.Pools[i].Key() == p.key {
			return d.plan.Pools[i]
		}
	}
	return v1alpha1.InferencePoolStatus{}
}

func (d *decision) pending(m *model, look bool) Pending {
	e := Explanation{}
	if c := status.Find(d.statusOf(m).Conditions, v1alpha1.ConditionPlaced); c != nil {
		e.Reason, e.Message = c.Reason, c.Message
	}
	why := lower(e.Message)
	if look {
		why = d.why(m, e)
	}
	return Pending{Model: m.key, Need: likely(known(m), ""), Reason: e.Reason, Why: why}
}

// decks are the devices of a worker.
func (d *decision) decks(s *station) []Deck {
	if s.Report == nil {
		return []Deck{{Worker: s.Name, State: s.coming()}}
	}
	var all []Deck
	for _, device := range s.Report.Devices {
		deck := Deck{Worker: s.Name, Device: device.Name, Kind: device.Kind, Capacity: device.CapacityBytes, Used: device.UsedBytes, Load: device.Load, State: s.troubled(),
			Outside: outside(&device), Health: device.Health, Missing: s.Report.Missing, Readings: device.Readings, MIG: device.MIG, Unwatched: device.Unwatched}
		if s.usable && !device.Lost() {
			deck.Free = max(0, d.fleet.Free(s.Name, device.Name))
			deck.Kept = max(0, deck.Capacity-deck.Used-deck.Free)
		}
		for _, key := range sortedKeys(s.homes) {
			if h := s.homes[key]; slices.Contains(h.devices, device.Name) {
				deck.Homes = append(deck.Homes, d.named(h, key))
			}
		}
		for _, left := range s.ending() {
			if slices.Contains(left.Devices, device.Name) {
				deck.Homes = append(deck.Homes, left)
			}
		}
		slices.SortStableFunc(deck.Homes, func(a, b Stay) int {
			return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Model, b.Model))
		})
		all = append(all, deck)
	}
	return all
}

// named is the stay of a home whose Model may be gone.
func (d *decision) named(h *home, key string) Stay {
	s := d.stay(h)
	s.Model = key
	return s
}

// ending are the homes that a worker was told to let go, and has not yet.
func (s *station) ending() []Stay {
	if s.Report == nil || s.Failed {
		return nil
	}
	var all []Stay
	for _, h := range s.Report.Homes {
		if s.homes[h.Model] == nil {
			all = append(all, Stay{Model: h.Model, Pool: s.Worker.Pool, Worker: s.Name, Devices: h.Devices, State: v1alpha1.PlacementDraining,
				Bytes: h.Footprint.Total(), Load: h.Load, Running: h.Running, Waiting: h.Waiting})
		}
	}
	return all
}

// onDevice: its bytes are on the device, or on their way to or from it.
func (s Stay) onDevice() bool {
	return s.State == v1alpha1.PlacementResident || s.State == v1alpha1.PlacementLoading || s.State == v1alpha1.PlacementDraining
}

func (s Stay) rank() int {
	if s.onDevice() {
		return 0
	}
	return 1
}

// coming says what a worker without a report waits for.
func (s *station) coming() string {
	switch {
	case !s.Deleting.IsZero() || s.memory.Going != "":
		return "on its way out"
	case s.Unschedulable != "":
		return "waits for a node: " + s.Unschedulable
	case s.Waiting != "":
		return "does not start: " + s.Waiting
	}
	return "is starting"
}

// troubled says why a worker takes no new homes; empty: it does.
func (s *station) troubled() string {
	switch {
	case s.silent:
		return "silent since " + s.Heard.UTC().Format("15:04:05 MST")
	case !s.Deleting.IsZero() || s.memory.Going != "" || s.Report.Draining:
		return "on its way out" + s.cause()
	}
	return ""
}

// movesPerHour is how many moves spec.moves allows.
func (p *pool) movesPerHour() int {
	if n := p.Spec.Moves.MaxPerHour; n != nil {
		return int(*n)
	}
	return movesByDefault
}

// barWidth of a whole device, in characters.
const barWidth = 20

// bar draws a device: # is resident, > on its way, - asleep here, . free, x what other processes take.
func (k Deck) bar() string {
	whole := k.Capacity + k.Outside
	if whole <= 0 {
		return ""
	}
	cells := func(n int64) int { return int((n*barWidth + whole/2) / whole) }
	var resident, moving, asleep int64
	for _, h := range k.Homes {
		switch {
		case h.State == v1alpha1.PlacementResident:
			resident += h.Bytes
		case h.onDevice() || h.State == v1alpha1.PlacementAssigned:
			moving += h.Bytes
		default:
			asleep += h.Bytes
		}
	}
	if strangers := k.Used - resident - moving; strangers > 0 {
		resident += strangers
	}
	x := min(cells(k.Outside), barWidth)
	width := barWidth - x
	a := min(cells(resident), width)
	b := min(cells(resident+moving), width) - a
	c := min(cells(resident+moving+asleep), width) - a - b
	return "[" + strings.Repeat("#", a) + strings.Repeat(">", b) + strings.Repeat("-", c) + strings.Repeat(".", width-a-b-c) + strings.Repeat("x", x) + "]"
}

// What a terminal shows of a pool; JSON has the rest.
const (
	shownDevices = 100
	shownPending = 20
)

// Text is the stowage for a terminal.
func (s Stowage) Text() string {
	t := &text{}
	t.line("%s", s.head())
	if !s.Ready || s.Stalled {
		t.line("  %s: %s", s.Reason, s.Message)
	}
	for i, k := range s.Devices {
		if i == shownDevices {
			t.line("  and %s more; --json shows all", count(len(s.Devices)-i, "device"))
			break
		}
		t.line("  %s", k.line())
		for _, h := range k.Homes {
			t.line("      %s", h.short())
		}
	}
	for i, p := range s.Pending {
		if i == shownPending {
			t.line("  ? and %s more; --json shows all", count(len(s.Pending)-i, "model"))
			break
		}
		t.line("  ? %s", p.line())
	}
	return t.String()
}

// head is the line about the whole pool. What is on devices, kept and free is its memory.
func (s Stowage) head() string {
	if s.Workers == 0 {
		return fmt.Sprintf("Pool %s: no worker (%d to %d)", s.Pool, s.Min, s.Max)
	}
	free := packing.Size(s.Free) + " free for new homes"
	if len(s.Devices) > 1 {
		free += fmt.Sprintf(" (at most %s on one device)", packing.Size(s.LargestFree))
	}
	return fmt.Sprintf("Pool %s: %d of %s ready (%d to %d), %s of %s on devices, %s%s, %d of %s left this hour", s.Pool, s.ReadyWorkers, count(s.Workers, "worker"), s.Min, s.Max,
		packing.Size(s.Used), packing.Size(s.Capacity), s.kept(), free, s.MovesLeft, count(s.MovesPerHour, "move"))
}

// kept says for whom what is neither on devices nor free is kept.
func (s Stowage) kept() string {
	asleep, coming := 0, 0
	for _, k := range s.Devices {
		for _, h := range k.Homes {
			switch {
			case h.State == v1alpha1.PlacementAssigned || h.State == v1alpha1.PlacementLoading:
				coming++
			case !h.onDevice():
				asleep++
			}
		}
	}
	switch size := packing.Size(s.Kept); {
	case s.Kept == 0:
		return ""
	case asleep > 0 && coming > 0:
		return fmt.Sprintf("%s kept for %d that %s and %d that %s, ", size, asleep, verb(asleep, "sleeps or waits", "sleep or wait"), coming, verb(coming, "comes", "come"))
	case asleep > 0:
		return fmt.Sprintf("%s kept for %d that %s, ", size, asleep, verb(asleep, "sleeps or waits", "sleep or wait"))
	case coming > 0:
		return fmt.Sprintf("%s kept for %d that %s, ", size, coming, verb(coming, "comes", "come"))
	default:
		return size + " kept for those that are there, "
	}
}

func (k Deck) line() string {
	if k.Device == "" {
		return k.Worker + " " + k.State
	}
	s := fmt.Sprintf("%s/%s %s %s of %s", k.Worker, k.Device, k.bar(), packing.Size(k.Used), packing.Size(k.Capacity))
	if k.Load >= 0.005 {
		s += fmt.Sprintf(", load %.0f %%", k.Load*100)
	}
	if k.MIG {
		s += ", a MIG instance (power and utilization are its GPU's)"
	}
	s += k.figures()
	if k.Unwatched {
		s += "; nobody watches it, since NVML does not tell of it: its worker's log says why"
	}
	if k.State != "" {
		s += "; " + k.State
	}
	switch h := k.Health; {
	case k.Missing != "":
		s += "; GPU missing: " + strings.TrimSuffix(k.Missing, ".")
	case h.State == worker.DeviceLost || h.State == worker.DeviceDegraded:
		s += fmt.Sprintf("; %s: %s", strings.ToLower(string(h.State)), strings.TrimSuffix(cmp.Or(h.Message, h.Reason), "."))
	}
	return s
}

// figures are the device's own.
func (k Deck) figures() (s string) {
	r := k.Readings
	if r == nil {
		return ""
	}
	if r.OthersBytes > 0 {
		s += fmt.Sprintf(", other processes hold %s", packing.Size(r.OthersBytes))
	}
	if r.Utilization != nil {
		s += fmt.Sprintf(", busy %.0f %%", *r.Utilization*100)
	}
	if r.PowerWatts != nil {
		s += fmt.Sprintf(", %.0f W", *r.PowerWatts)
	}
	if r.TemperatureCelsius != nil {
		s += fmt.Sprintf(", %.0f °C", *r.TemperatureCelsius)
	}
	return s
}

// state in words.
func (s Stay) state() string {
	switch s.State {
	case v1alpha1.PlacementHost:
		return "asleep, weights in host memory"
	case v1alpha1.PlacementDisk:
		return "asleep"
	case v1alpha1.PlacementWaiting:
		return "waiting for room"
	case v1alpha1.PlacementAssigned:
		return "assigned, not reported yet"
	}
	return strings.ToLower(string(s.State))
}

// short is a line of a model on a device.
func (s Stay) short() string {
	mark := "#"
	switch {
	case s.State == v1alpha1.PlacementResident:
	case s.onDevice() || s.State == v1alpha1.PlacementAssigned:
		mark = ">"
	default:
		mark = "-"
	}
	line := fmt.Sprintf("%s %s %s, %s", mark, s.Model, packing.Size(s.Bytes), s.state())
	if s.Progress > 0 && s.Progress < 1 {
		line += fmt.Sprintf(" (%d %%)", int(s.Progress*100))
	}
	if s.ResidentSeconds > 0 {
		line += " for " + span(s.ResidentSeconds)
	}
	if n := s.Running + s.Waiting; n > 0 {
		line += ", " + count(n, "request")
	}
	if s.Load >= 0.005 {
		line += fmt.Sprintf(", load %.0f %%", s.Load*100)
	}
	if s.JoulesPerToken > 0 {
		line += fmt.Sprintf(", %.2g J a token", s.JoulesPerToken)
	}
	if s.Message != "" {
		line += "; " + strings.TrimSuffix(s.Message, ".")
	}
	return line
}

func (p Pending) line() string { return fmt.Sprintf("%s, %s: %s", p.Model, p.Reason, p.Why) }
