package device

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"sigs.k8s.io/yaml"

	"github.com/estiba/estiba/runtime/residency"
	"github.com/estiba/estiba/runtime/weights"
)

// Emulation is a Monitor of GPUs that are described in a file and are not there: for tests, and for trying
// how models are packed without a GPU. The file, YAML or JSON, is read again whenever it is asked and has
// changed; contents that are wrong are logged once, and the last good ones stay in force. An example:
//
//	devices:
//	- uuid: GPU-1                        # as all but memory, this may be left out
//	  name: NVIDIA A100-SXM4-80GB
//	  pci: 00000000:3B:00.0
//	  memory: 80Gi                       # without what the driver reserves
//	  processes:                         # strangers
//	  - {pid: 4711, memory: 30Gi}
//	  others: 30Gi                       # instead of them: their memory without their numbers
//	  utilization: 0.4                   # 0 to 1
//	  power: 250                         # watts
//	  powerLimit: 400
//	  energy: 1200                       # counter, in joules; without it, it begins with 0 and grows with power
//	  temperature: 61                    # degrees Celsius
//	  throttled: [Heat]                  # of Heat, HeatHard, Power, PowerBrake, Hardware
//	  eccUncorrected: 0
//	  rowRemap: Pending                  # or Failed
//	  xids: [63]                         # each that is added to the list is an event
//	  gone: false                        # it does not answer; so it is after XID 79
//	  mig:                               # it is split, and these are the devices
//	  - {uuid: MIG-1, profile: 3g.40gb, memory: 40Gi, others: 1Gi}
//
// A figure that is left out is absent. At most 64 KiB are read, which describe hundreds of devices. What MIG instances cannot tell (energy, power, utilization) they do not
// tell here either; temperature, throttling, errors and XIDs are their GPU's.
//
// A device that goes from the file is gone until it comes back. As on a machine, none is added to a process that
// runs, and none becomes another one: such contents are wrong.
type Emulation struct {
	path string
	held Held
	log  *slog.Logger

	mu      sync.Mutex
	text    []byte // of the file when its description came into force
	wrong   string // what was wrong with it, as logged
	gpus    []gpu
	first   []identity          // of the devices when e was made
	energy  map[string]*counter // UUID -> grown with power
	closed  chan struct{}
	happens chan Event // nil until Events is called
}

// identity is what a device stays while a process uses it.
type identity struct {
	uuid, name string
	memory     size
	parent     string // UUID of a MIG instance's GPU
}

func (i identity) String() string {
	text := fmt.Sprintf("%s with %s", i.name, residency.Bytes(int64(i.memory)))
	if i.parent != "" {
		text += " on " + i.parent
	}
	return text
}

// identities of GPUs and their MIG instances.
func identities(gpus []gpu) (all []identity) {
	for _, g := range gpus {
		all = append(all, identity{g.UUID, g.Name, g.Memory, ""})
		for _, m := range g.MIG {
			all = append(all, identity{m.UUID, m.Name, m.Memory, g.UUID})
		}
	}
	return all
}

// counter is energy that grows with power.
type counter struct {
	joules float64
	at     time.Time
	watts  float64 // since then
}

func (c *counter) to(now time.Time) float64 {
	c.joules += c.watts * now.Sub(c.at).Seconds()
	c.at = now
	return c.joules
}

// gpu is one device of the file.
type gpu struct {
	UUID           string    `json:"uuid"`
	Name           string    `json:"name"`
	PCI            string    `json:"pci"`
	Profile        string    `json:"profile"` // of a MIG instance
	Memory         size      `json:"memory"`
	Others         size      `json:"others"`
	Processes      []process `json:"processes"`
	Utilization    *float64  `json:"utilization"`
	Power          *float64  `json:"power"`
	PowerLimit     *float64  `json:"powerLimit"`
	Energy         *float64  `json:"energy"`
	Temperature    *float64  `json:"temperature"`
	Throttled      []string  `json:"throttled"`
	ECCUncorrected *float64  `json:"eccUncorrected"`
	RowRemap       string    `json:"rowRemap"`
	XIDs           []int     `json:"xids"`
	Gone           bool      `json:"gone"`
	MIG            []gpu     `json:"mig"`
}

type process struct {
	PID    int  `json:"pid"`
	Memory size `json:"memory"`
}

// size is bytes: a number, or "30Gi".
type size int64

func (s *size) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	number, factor := text, int64(1)
	for i, unit := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if n, ok := strings.CutSuffix(text, unit); ok {
			number, factor = n, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 || n*float64(factor) >= 1<<62 || math.IsNaN(n) {
		return fmt.Errorf("%s is no size; write 30Gi or a number of bytes", b)
	}
	*s = size(n * float64(factor))
	return nil
}

// Emulated reads the devices that a file describes; see Emulation for how. held is what this process holds of
// them, log is told about contents that cannot be used; nil means slog.Default().
func Emulated(path string, held Held, log *slog.Logger) (*Emulation, error) {
	e := &Emulation{path: path, held: held, log: cmp.Or(log, slog.Default()), energy: map[string]*counter{}, closed: make(chan struct{})}
	text, err := contents(path)
	if err != nil {
		return nil, fmt.Errorf("read emulated devices: %w", err)
	}
	gpus, err := describe(text)
	if err != nil {
		return nil, fmt.Errorf("read emulated devices from %s: %w", path, err)
	}
	e.text, e.first = text, identities(gpus)
	e.take(gpus, time.Now())
	return e, nil
}

// mostText of a description is read.
const mostText = 64 << 10

// contents of a file, which somebody may write at this time.
func contents(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, mostText+1))
	if err == nil && len(text) > mostText {
		err = fmt.Errorf("%s is longer than %d KiB; describe fewer devices", path, mostText>>10)
	}
	return text, err
}

// describe reads a file's contents.
func describe(text []byte) ([]gpu, error) {
	var file struct {
		Devices []gpu `json:"devices"`
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return nil, within(text, plain(err))
	}
	if len(file.Devices) == 0 {
		return nil, fmt.Errorf("no devices; describe one, as in devices: [{memory: 80Gi}]")
	}
	seen := map[string]bool{}
	for i := range file.Devices {
		g := &file.Devices[i]
		g.UUID = cmp.Or(g.UUID, fmt.Sprintf("GPU-emulated-%d", i))
		g.Name = cmp.Or(g.Name, "Emulated GPU")
		g.PCI = cmp.Or(g.PCI, fmt.Sprintf("00000000:%02X:00.0", i))
		if err := g.check(seen); err != nil {
			return nil, err
		}
		if g.Profile != "" {
			return nil, fmt.Errorf("device %s: only MIG instances have a profile; write it into mig", g.UUID)
		}
		instances := size(0)
		if len(g.MIG) > 0 && (g.Others > 0 || len(g.Processes) > 0) {
			return nil, fmt.Errorf("device %s: it is split, and strangers hold memory of its instances; write others and processes at those of mig", g.UUID)
		}
		for k := range g.MIG {
			m := &g.MIG[k]
			m.UUID = cmp.Or(m.UUID, fmt.Sprintf("MIG-emulated-%d-%d", i, k))
			if said := (gpu{UUID: m.UUID, Profile: m.Profile, Memory: m.Memory, Others: m.Others, Processes: m.Processes}); !reflect.DeepEqual(*m, said) {
				return nil, fmt.Errorf("MIG instance %s: only uuid, profile, memory, others and processes can be said of it", m.UUID)
			}
			m.Name = strings.TrimSpace(g.Name + " MIG " + m.Profile)
			m.PCI = g.PCI
			if err := m.check(seen); err != nil {
				return nil, err
			}
			if instances += min(m.Memory, math.MaxInt64-instances); instances > g.Memory {
				return nil, fmt.Errorf("device %s: its MIG instances have more memory than it has itself; lower theirs", g.UUID)
			}
		}
	}
	return file.Devices, nil
}

// within says in which device of a description err is, and for a field that is none which there are.
func within(text []byte, err error) error {
	var file struct {
		Devices []json.RawMessage `json:"devices"`
	}
	if said := yaml.Unmarshal(text, &file); said != nil {
		return err
	}
	for i, one := range file.Devices {
		var g gpu
		read := json.NewDecoder(bytes.NewReader(one))
		read.DisallowUnknownFields()
		if read.Decode(&g) == nil {
			continue
		}
		var named struct {
			UUID string `json:"uuid"`
		}
		_ = json.Unmarshal(one, &named) // it may be this that is wrong
		if strings.HasPrefix(err.Error(), "unknown field") {
			err = fmt.Errorf("%w; a device has %s, and each of processes has %s", err, fields(g), fields(process{}))
		}
		return fmt.Errorf("device %.96s: %w", cmp.Or(named.UUID, fmt.Sprintf("GPU-emulated-%d", i)), err)
	}
	if strings.HasPrefix(err.Error(), "unknown field") {
		err = fmt.Errorf("%w; write devices, as in devices: [{memory: 80Gi}]", err)
	}
	return err
}

// fields that a description may give to a thing.
func fields(thing any) string {
	var all []string
	for t, i := reflect.TypeOf(thing), 0; i < t.NumField(); i++ {
		all = append(all, t.Field(i).Tag.Get("json"))
	}
	return strings.Join(all, ", ")
}

// plain puts an error of the YAML reader, which names types of Go's, into the words of a description's author, on one line.
func plain(err error) error {
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	if _, ok := errors.AsType[*json.UnsupportedValueError](err); ok {
		return errors.New("a number is infinite or none; leave out a figure that is not known")
	}
	if strings.Contains(err.Error(), "map key") {
		return errors.New("what stands before a colon is no name of a field; write fields as in the example of docs/gpus.md")
	}
	text := strings.Join(strings.Fields(weights.JSONError(err).Error()), " ")
	return errors.New(strings.TrimPrefix(text, "json: "))
}

// bounds of figures: more than any device has, and no more than can be reckoned with.
const (
	mostMemory  = 1 << 50 // bytes
	mostWatts   = 10_000
	mostJoules  = 1e15
	mostErrors  = 1e15
	mostXID     = 9999
	mostPID     = 1 << 22 // of Linux
	leastDegree = -100    // Celsius
	mostDegree  = 200
	mostName    = 96 // bytes; NVML's
)

// check finds what cannot be.
func (g *gpu) check(seen map[string]bool) error {
	for _, text := range []string{g.UUID, g.Name, g.PCI, g.Profile} {
		if len(text) > mostName || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return fmt.Errorf("a device has the text %.40q; write %d printable bytes at most", text, mostName)
		}
	}
	what := func(format string, a ...any) error {
		return fmt.Errorf("device %s: %s", g.UUID, fmt.Sprintf(format, a...))
	}
	reasons := []string{ThrottleHeat, ThrottleHeatHard, ThrottlePower, ThrottlePowerBrake, ThrottleHardware}
	switch {
	case seen[g.UUID]:
		return what("two have this uuid")
	case g.Memory <= 0:
		return what("memory is missing; say how much it has, as in memory: 80Gi")
	case g.Memory > mostMemory:
		return what("memory is %s; write 1024Ti at most", residency.Bytes(int64(g.Memory)))
	case g.Others > 0 && len(g.Processes) > 0:
		return what("it has both processes and others, which is their memory without their numbers; write one of them")
	case g.strangers() > g.Memory:
		return what("others hold more than its memory")
	case g.RowRemap != "" && g.RowRemap != "Pending" && g.RowRemap != "Failed":
		return what("rowRemap is %q; write Pending or Failed", g.RowRemap)
	}
	for _, f := range []struct {
		name        string
		is          *float64
		least, most float64
	}{
		{"utilization", g.Utilization, 0, 1}, {"power", g.Power, 0, mostWatts}, {"powerLimit", g.PowerLimit, 0, mostWatts}, {"energy", g.Energy, 0, mostJoules},
		{"temperature", g.Temperature, leastDegree, mostDegree}, {"eccUncorrected", g.ECCUncorrected, 0, mostErrors},
	} {
		if f.is != nil && !(*f.is >= f.least && *f.is <= f.most) {
			return what("%s is %v; write a number from %v to %v", f.name, *f.is, f.least, f.most)
		}
	}
	if n := g.ECCUncorrected; n != nil && *n != math.Trunc(*n) {
		return what("eccUncorrected is %v; write how many errors there are", *n)
	}
	pids := map[int]bool{}
	for _, p := range g.Processes {
		if p.PID < 1 || p.PID > mostPID || pids[p.PID] {
			return what("a process has the number %d; write those of different processes, from 1 to %d, as in {pid: 4711, memory: 30Gi}, or others in their place", p.PID, mostPID)
		}
		pids[p.PID] = true
	}
	for i, t := range g.Throttled {
		if !slices.Contains(reasons, t) || slices.Contains(g.Throttled[:i], t) {
			return what("throttled has %q; write of %s, each once", t, strings.Join(reasons, ", "))
		}
	}
	for _, xid := range g.XIDs {
		if xid <= 0 || xid > mostXID {
			return what("xids has %d; write numbers of NVIDIA's list, as in [79]", xid)
		}
	}
	seen[g.UUID] = true
	return nil
}

// strangers' memory; no more than can be counted.
func (g *gpu) strangers() size {
	sum := size(0)
	for _, p := range g.Processes {
		sum += min(p.Memory, math.MaxInt64-sum)
	}
	return max(sum, g.Others)
}

// gone: no answer comes from it.
func (g *gpu) gone() bool { return g.Gone || slices.Contains(g.XIDs, 79) }

// look reads the file again. e.mu is held.
func (e *Emulation) look(now time.Time) {
	text, err := contents(e.path)
	if err == nil {
		if bytes.Equal(text, e.text) {
			e.wrong = ""
			return
		}
		var gpus []gpu
		if gpus, err = describe(text); err == nil {
			err = e.stays(gpus)
		}
		if err == nil {
			e.text, e.wrong = text, ""
			e.take(gpus, now)
			return
		}
	}
	if e.wrong != err.Error() {
		e.wrong = err.Error()
		e.log.Error("emulated devices not read, the last good description stays in force", "file", e.path, "error", err)
	}
}

// stays says which device is another one than it was when e was made, or is new.
func (e *Emulation) stays(gpus []gpu) error {
	for _, is := range identities(gpus) {
		at := slices.IndexFunc(e.first, func(was identity) bool { return was.uuid == is.uuid })
		if at < 0 {
			return fmt.Errorf("device %s is new, and a process that runs gets no further ones; start it anew", is.uuid)
		}
		if was := e.first[at]; is != was {
			return fmt.Errorf("device %s is %v, and it was %v; write as others what strangers take of it, or start the process anew for another device", is.uuid, is, was)
		}
	}
	return nil
}

// take puts a description into force: counters go on with the new power, and an XID that the one before
// did not have is an event. e.mu is held, or nobody else has e.
func (e *Emulation) take(gpus []gpu, now time.Time) {
	before := map[string][]int{}
	for _, g := range e.gpus {
		before[g.UUID] = g.XIDs
	}
	for _, g := range gpus {
		c := e.energy[g.UUID]
		if c == nil {
			c = &counter{at: now}
			e.energy[g.UUID] = c
		}
		c.to(now)
		c.watts = 0
		if g.Power != nil {
			c.watts = *g.Power
		}
		was := slices.Clone(before[g.UUID])
		for _, xid := range g.XIDs {
			if i := slices.Index(was, xid); i >= 0 {
				was = slices.Delete(was, i, i+1)
				continue
			}
			e.happen(NewEvent(g.UUID, now, xid))
		}
	}
	e.gpus = gpus
}

// happen passes an event on, if somebody listens and keeps up. e.mu is held.
func (e *Emulation) happen(event Event) {
	if e.happens == nil {
		return
	}
	select {
	case e.happens <- event:
	default:
		e.log.Error("an event is lost, since 64 wait", "device", event.UUID, "xid", event.XID)
	}
}

// Devices reads the file and lists what it describes.
func (e *Emulation) Devices() ([]Unit, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.look(time.Now())
	var units []Unit
	for i, g := range e.gpus {
		units = append(units, Unit{UUID: g.UUID, Name: g.Name, PCI: g.PCI, Index: i, Split: len(g.MIG) > 0, Total: int64(g.Memory)})
		for _, m := range g.MIG {
			units = append(units, Unit{UUID: m.UUID, Name: m.Name, PCI: m.PCI, Index: i, MIG: true, Parent: g.UUID, Total: int64(m.Memory)})
		}
	}
	return units, nil
}

// Read reads the file and says what it says of a device.
func (e *Emulation) Read(uuid string) (Reading, error) {
	held := e.held.of(uuid) // which may take locks of its own
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.look(now)
	for _, g := range e.gpus {
		if g.UUID == uuid {
			return e.read(g, g, held, now)
		}
		for _, m := range g.MIG {
			if m.UUID == uuid {
				return e.read(m, g, held, now)
			}
		}
	}
	return Reading{}, fmt.Errorf("%s describes no device %s: %w", e.path, uuid, ErrGone)
}

// read reads g, of which whole is the GPU.
func (e *Emulation) read(g, whole gpu, held int64, now time.Time) (Reading, error) {
	if whole.gone() {
		return Reading{}, fmt.Errorf("device %s: %w", g.UUID, ErrGone)
	}
	figure := func(n *float64) Figure {
		if n == nil {
			return Figure{}
		}
		return Known(*n)
	}
	r := Reading{
		Time: now, Total: int64(g.Memory), Ours: min(held, int64(g.Memory)), OursFrom: OursHeld,
		TemperatureCelsius: figure(whole.Temperature), Throttled: slices.Clone(whole.Throttled), ECCUncorrected: figure(whole.ECCUncorrected),
		RemapPending: whole.RowRemap == "Pending", RemapFailed: whole.RowRemap == "Failed",
	}
	r.Others = min(int64(g.strangers()), r.Total-r.Ours)
	r.Free = r.Total - r.Ours - r.Others
	for _, p := range g.Processes {
		r.Processes = append(r.Processes, Process{PID: p.PID, Bytes: int64(p.Memory)})
	}
	if g.UUID != whole.UUID {
		return r, nil
	}
	r.Utilization, r.PowerWatts, r.PowerLimitWatts, r.EnergyJoules = figure(g.Utilization), figure(g.Power), figure(g.PowerLimit), figure(g.Energy)
	if g.Energy == nil && g.Power != nil {
		r.EnergyJoules = Known(e.energy[g.UUID].to(now))
	}
	return r, nil
}

// Events reads the file each quarter of a second, for XIDs that come. Those of the first description
// are events too: they come at once.
func (e *Emulation) Events(ctx context.Context) <-chan Event {
	out := make(chan Event)
	e.mu.Lock()
	happens := make(chan Event, 64)
	e.happens = happens
	for _, g := range e.gpus {
		for _, xid := range g.XIDs {
			e.happen(NewEvent(g.UUID, time.Now(), xid))
		}
	}
	e.mu.Unlock()
	go func() {
		defer close(out)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case event := <-happens:
				select {
				case out <- event:
				case <-ctx.Done():
					return
				case <-e.closed:
					return
				}
			case now := <-tick.C:
				e.mu.Lock()
				e.look(now)
				e.mu.Unlock()
			case <-ctx.Done():
				return
			case <-e.closed:
				return
			}
		}
	}()
	return out
}

// Close ends Events.
func (e *Emulation) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.closed:
	default:
		close(e.closed)
	}
	return nil
}
