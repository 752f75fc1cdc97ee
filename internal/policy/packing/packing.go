// Package packing decides which device is a model's home. It is pure: equal
// input, in any order, gives an equal answer. Start with Fleet.Place.
//
// The first rule: what fits by footprint, tightest first, so that large free
// devices stay large. Nothing that has a home is moved.
package packing

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Device is a device of a worker that may take homes.
type Device struct {
	Pool   string
	Worker string
	Name   string
	// Capacity is what models may use, and Extent the unit of accounts; both in bytes.
	Capacity int64
	Extent   int64
}

// Home is a model on a device.
type Home struct {
	Model  string // empty: bytes that are taken, by nothing that could leave
	Pool   string
	Worker string
	Device string
	Bytes  int64 // in whole extents
	Alone  bool  // no other home may come to this worker
}

// Want is a replica that looks for a home.
type Want struct {
	Model string
	// Need in bytes for each pool that the model may go to. Pools that are not named are not asked.
	Need map[string]int64 // pool -> bytes
	// Alone: only a worker without any home, and none may come after it.
	Alone bool
	// Not are workers that are out of the question.
	Not map[string]bool
}

// Fleet is a snapshot that answers "what if": Place, Take and Undo touch one
// device each. For every device, 0 <= used; used <= capacity holds for what
// Place chose, while Take records what is there even if it is too much.
type Fleet struct {
	devices map[place]*device
	pools   map[string][]*device // pool -> devices, fewest free bytes first
	workers map[string]*load
}

type place struct{ worker, device string }

type device struct {
	Device
	used  int64
	homes []Home // sorted by model
}

func (d *device) free() int64 { return d.Capacity - d.used }

// fit is what a home of n bytes takes on this device: whole extents.
func (d *device) fit(n int64) int64 {
	if d.Extent <= 0 {
		return n
	}
	return (n + d.Extent - 1) / d.Extent * d.Extent
}

// load counts the homes on all devices of a worker.
type load struct {
	homes, alone int
	models       map[string]int
}

// New takes a snapshot of the devices, all empty.
func New(devices []Device) *Fleet {
	f := &Fleet{map[place]*device{}, map[string][]*device{}, map[string]*load{}}
	for _, d := range devices {
		e := &device{Device: d}
		f.devices[place{d.Worker, d.Name}] = e
		f.pools[d.Pool] = append(f.pools[d.Pool], e)
		if f.workers[d.Worker] == nil {
			f.workers[d.Worker] = &load{models: map[string]int{}}
		}
	}
	for _, devices := range f.pools {
		slices.SortFunc(devices, tighter)
	}
	return f
}

// tighter is a total order, so that the order of the input does not matter.
func tighter(a, b *device) int {
	return cmp.Or(cmp.Compare(a.free(), b.free()), cmp.Compare(a.Worker, b.Worker), cmp.Compare(a.Name, b.Name))
}

// Take records a home where it is, and reports whether the device is known.
func (f *Fleet) Take(h Home) bool { return f.change(h, 1) }

// Undo takes back a home that Place or Take gave.
func (f *Fleet) Undo(h Home) bool { return f.change(h, -1) }

func (f *Fleet) change(h Home, sign int) bool {
	d := f.devices[place{h.Worker, h.Device}]
	if d == nil {
		return false
	}
	devices := f.pools[d.Pool]
	at, _ := slices.BinarySearchFunc(devices, d, tighter)
	devices = slices.Delete(devices, at, at+1)
	d.used += int64(sign) * d.fit(h.Bytes)
	at, _ = slices.BinarySearchFunc(devices, d, tighter)
	f.pools[d.Pool] = slices.Insert(devices, at, d)

	if h.Model == "" {
		return true
	}
	i, found := slices.BinarySearchFunc(d.homes, h.Model, func(h Home, m string) int { return cmp.Compare(h.Model, m) })
	switch {
	case sign > 0:
		d.homes = slices.Insert(d.homes, i, h)
	case found:
		d.homes = slices.Delete(d.homes, i, i+1)
	}
	w := f.workers[d.Worker]
	w.homes += sign
	w.models[h.Model] += sign
	if h.Alone {
		w.alone += sign
	}
	return true
}

// Free bytes of a device.
func (f *Fleet) Free(worker, name string) int64 {
	if d := f.devices[place{worker, name}]; d != nil {
		return d.free()
	}
	return 0
}

// Place chooses the device with the least room left after w has moved in, takes
// it, and says why; or says, class by class, why no device can be the home. A
// model has at most one home on a worker.
func (f *Fleet) Place(w Want) (h Home, reason string, why Why) {
	var best *device
	room := 0
	why = Why{Alone: w.Alone, Need: smallest(w.Need)}
	for _, pool := range sortedKeys(w.Need) {
		need := w.Need[pool]
		for _, d := range f.pools[pool] {
			if class := f.refuse(d, w, need); class != fits {
				why.add(class, d, need)
				continue
			}
			room++
			if best == nil || better(d, need, best, w.Need[best.Pool]) {
				best = d
			}
		}
	}
	if best == nil {
		why.finish()
		return Home{}, "", why
	}
	h = Home{w.Model, best.Pool, best.Worker, best.Name, best.fit(w.Need[best.Pool]), w.Alone}
	f.Take(h)
	return h, placed(room, best.free(), w.Alone), Why{}
}

func better(a *device, needA int64, b *device, needB int64) bool {
	return cmp.Or(
		cmp.Compare(a.free()-a.fit(needA), b.free()-b.fit(needB)),
		cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Worker, b.Worker), cmp.Compare(a.Name, b.Name)) < 0
}

func placed(room int, left int64, alone bool) string {
	what := fmt.Sprintf("tightest of %d devices with room", room)
	if room == 1 {
		what = "the only device with room"
	}
	if alone {
		what += " on a worker without other models"
	}
	return fmt.Sprintf("%s: %s left", what, Size(left))
}

// class says why a device is refused. A device is in the first class that applies.
type class int

const (
	fits     class = iota
	excluded       // holds a replica already, or must not be used
	tooSmall       // even when empty
	full           // now
	reserved       // for a model that is tried alone, or not empty when w must be alone
)

func (f *Fleet) refuse(d *device, w Want, need int64) class {
	at := f.workers[d.Worker]
	switch {
	case d.fit(need) > d.Capacity:
		return tooSmall
	case w.Not[d.Worker] || at.models[w.Model] > 0:
		return excluded
	case at.alone > 0 || w.Alone && at.homes > 0:
		return reserved
	case d.fit(need) > d.free():
		return full
	}
	return fits
}

// Why says why there is no home: the devices that were refused, by class.
type Why struct {
	Alone bool
	Need  int64 // the least that any allowed pool needs, in bytes

	TooSmall        int   // devices whose whole capacity is less than the need
	LargestCapacity int64 // among all devices
	Full            int   // devices that could hold it if others left
	LargestFree     int64 // among all devices that may be used
	FreeOf          int64 // capacity of the device with the largest free room
	FreeOn          string
	Reserved        int // devices of workers kept for a model that is tried alone
	Excluded        int // devices of workers that hold a replica already or must not be used

	// Go are the models that would have to leave the device Leave, the fewest and then the smallest.
	Go    []string
	Leave string // "worker/device"

	candidates []*device
}

func (y *Why) add(c class, d *device, need int64) {
	switch c {
	case tooSmall:
		y.TooSmall++
	case full:
		y.Full++
		y.candidates = append(y.candidates, d)
	case reserved:
		y.Reserved++
	case excluded:
		y.Excluded++
	}
	y.LargestCapacity = max(y.LargestCapacity, d.Capacity)
	name := d.Worker + "/" + d.Name
	if c == excluded || y.FreeOn != "" && (d.free() < y.LargestFree || d.free() == y.LargestFree && name > y.FreeOn) {
		return
	}
	y.LargestFree, y.FreeOf, y.FreeOn = max(0, d.free()), d.Capacity, name
}

// finish finds what would have to go, largest homes first on each device.
func (y *Why) finish() {
	var best []Home
	for _, d := range y.candidates {
		homes := slices.Clone(d.homes)
		slices.SortStableFunc(homes, func(a, b Home) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Model, b.Model)) })
		free, n := d.free(), 0
		for ; n < len(homes) && free < d.fit(y.Need); n++ {
			free += d.fit(homes[n].Bytes)
		}
		name := d.Worker + "/" + d.Name
		if homes = homes[:n]; free < d.fit(y.Need) {
			continue
		}
		if y.Leave == "" || cmp.Or(cmp.Compare(n, len(best)), cmp.Compare(sum(homes), sum(best)), cmp.Compare(name, y.Leave)) < 0 {
			best, y.Leave = homes, name
		}
	}
	for _, h := range best {
		y.Go = append(y.Go, h.Model)
	}
	slices.Sort(y.Go)
	y.candidates = nil
}

func sum(homes []Home) (n int64) {
	for _, h := range homes {
		n += h.Bytes
	}
	return n
}

// Devices that were looked at.
func (y Why) Devices() int { return y.TooSmall + y.Full + y.Reserved + y.Excluded }

// String says it in whole sentences.
func (y Why) String() string {
	var b strings.Builder
	switch {
	case y.Devices() == 0:
		return fmt.Sprintf("Needs %s; there is no device yet.", Size(y.Need))
	case y.FreeOn == "":
		fmt.Fprintf(&b, "Needs %s; every worker that could hold it holds a replica already or is on its way out.", Size(y.Need))
	default:
		fmt.Fprintf(&b, "Needs %s; the largest free device has %s of %s.", Size(y.Need), Size(y.LargestFree), Size(y.FreeOf))
	}
	if y.TooSmall > 0 {
		fmt.Fprintf(&b, " %s too small even when empty (the largest has %s).", devices(y.TooSmall), Size(y.LargestCapacity))
	}
	if y.Full > 0 {
		fmt.Fprintf(&b, " %s full now.", devices(y.Full))
	}
	if y.Reserved > 0 && y.Alone {
		fmt.Fprintf(&b, " %s not empty, and it is to be tried alone.", devices(y.Reserved))
	} else if y.Reserved > 0 {
		fmt.Fprintf(&b, " %s kept for a model that is tried alone after a worker died.", devices(y.Reserved))
	}
	if y.Excluded > 0 && y.FreeOn != "" {
		fmt.Fprintf(&b, " %s on workers that hold a replica already or are on their way out.", devices(y.Excluded))
	}
	if len(y.Go) > 0 {
		fmt.Fprintf(&b, " To make room on %s, %s would have to go.", y.Leave, strings.Join(y.Go, ", "))
	}
	return b.String()
}

func devices(n int) string {
	if n == 1 {
		return "1 device is"
	}
	return fmt.Sprintf("%d devices are", n)
}

func smallest(need map[string]int64) int64 {
	var n int64
	for _, pool := range sortedKeys(need) {
		if n == 0 || need[pool] < n {
			n = need[pool]
		}
	}
	return n
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Size writes bytes for people: 14.2 GiB, 525 KiB, 12 B. It rounds to one decimal.
func Size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1024 && unit < 4 {
		v, unit = v/1024, unit+1
	}
	return strings.Replace(fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit]), ".0 ", " ", 1)
}
