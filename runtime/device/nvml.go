package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/estiba/estiba/runtime/residency"
)

// Monitor reads the devices that NVML knows: whole GPUs and MIG instances. NVML is the real one,
// Emulated the one that a file describes. Both may be used from many goroutines.
type Monitor interface {
	// Devices are the devices in the order of their indexes; a GPU that is split into MIG instances
	// comes before them and is no device that models can be loaded on.
	Devices() ([]Unit, error)
	// Read reads one device. A figure that the device, its driver or the rights of this process do
	// not give is absent, which is no error; ErrGone says that the device no longer answers, and ErrUnlisted that it may not.
	Read(uuid string) (Reading, error)
	// Events are the devices' events from now on until ctx ends, which closes the channel. It is
	// called once. A monitor that cannot listen closes it at once.
	Events(ctx context.Context) <-chan Event
	Close() error
}

// Held is how many bytes of a device this process holds by its own account, its context included: what
// Reading.Ours falls back on where the driver's processes cannot be matched with this one. It may be called
// from any goroutine. Nil means nothing is held.
type Held func(uuid string) int64

func (h Held) of(uuid string) int64 {
	if h == nil {
		return 0
	}
	return max(h(uuid), 0)
}

var (
	// ErrNoNVML says that NVML cannot be used. CUDA may do without.
	ErrNoNVML = errors.New("NVML cannot be used")
	// ErrNotBuilt says that this program cannot ask NVML.
	ErrNotBuilt = errors.New("this program is built without CUDA and knows no GPUs; use one that is built with it ('make build-cuda')")
	// ErrGone says that a device does not answer any more: it fell off the bus, or must be reset.
	ErrGone = errors.New("the device does not answer")
	// ErrUnlisted is an ErrGone of which no more is known than that the driver does not list the device. That may pass: a
	// call of the listing has failed, or a MIG instance is made anew.
	ErrUnlisted = fmt.Errorf("the driver does not list it: %w", ErrGone)
)

// Unit is one device as NVML names it.
type Unit struct {
	UUID   string // "GPU-…" or "MIG-…"
	Name   string // "NVIDIA A100-SXM4-80GB", with the profile of a MIG instance behind it: "… MIG 3g.40gb"
	PCI    string // "00000000:3B:00.0"; a MIG instance has its GPU's
	Index  int    // of the GPU; a MIG instance has its GPU's
	MIG    bool   // it is a MIG instance
	Split  bool   // it is a GPU in MIG mode: its instances are the devices
	Parent string // UUID of a MIG instance's GPU; "" for a GPU
	Total  int64  // bytes
}

// Figure is a number that a device may not tell.
type Figure struct {
	Value float64
	Known bool
}

// Known is a figure that is told.
func Known(value float64) Figure { return Figure{value, true} }

// Reading is what a device said at one time. Total = Free + Ours + Others.
type Reading struct {
	Time               time.Time
	Total, Free        int64  // bytes; Total is without what the driver reserves
	Ours               int64  // bytes that this process holds: models, its context, its kernels
	Others             int64  // bytes that other processes hold
	OursFrom           string // OursListed or OursHeld
	Utilization        Figure // 0..1: the part of the last sampling period in which a kernel ran
	PowerWatts         Figure // of the whole board
	PowerLimitWatts    Figure
	EnergyJoules       Figure // counter since the driver was loaded; of whole devices only
	TemperatureCelsius Figure
	Throttled          []string // why clocks are lower than wanted, of the Throttle… reasons
	ECCUncorrected     Figure   // errors since the driver was loaded
	RemapPending       bool     // rows of memory are replaced at the next reset
	RemapFailed        bool     // no spare rows are left: the device must be replaced
	Processes          []Process
}

// Where Reading.Ours comes from.
const (
	OursListed = "Listed" // the driver's list has this process
	OursHeld   = "Held"   // what it holds by its own account: its number is another one outside its container, or the list is not shown to it
)

// Process is one process with memory on a device.
type Process struct {
	PID   int // as the driver counts: outside of containers
	Bytes int64
	Ours  bool
}

// Reasons why clocks are lowered.
const (
	ThrottleHeat       = "Heat"       // the device lowers its own clocks because it or its memory is hot
	ThrottleHeatHard   = "HeatHard"   // the same, by half or more: cooling has failed
	ThrottlePower      = "Power"      // at the power limit; usual under full load, no defect
	ThrottlePowerBrake = "PowerBrake" // the machine's power supply asks for less
	ThrottleHardware   = "Hardware"   // the hardware slows down for a reason that it does not tell
)

// Event is one thing that a device reported.
type Event struct {
	UUID    string // of the MIG instance where it is known to concern only that, else of the GPU
	Time    time.Time
	XID     int    // 0: an event of ECC that comes without one
	Message string // what it means and what to do
	Fatal   bool   // the device is lost to this process
}

// NewEvent is the event of an XID, with its meaning.
func NewEvent(uuid string, at time.Time, xid int) Event {
	x := Meaning(xid)
	return Event{UUID: uuid, Time: at, XID: xid, Message: x.String(), Fatal: x.Severity == Lost}
}

// State is how fit a device is to compute.
type State int

// The states, from best to worst. A worker avoids what is Degraded and leaves what is Lost.
const (
	Healthy  State = iota
	Degraded       // it computes, more slowly or with a defect that will need a reset
	Lost           // nothing on it can be trusted or reached; the process must let go of it
)

func (s State) String() string {
	return [...]string{"Healthy", "Degraded", "Lost"}[s]
}

// Health is the verdict on a device.
type Health struct {
	State   State
	Reason  string // one word, for conditions: Healthy, Heat, PowerBrake, Hardware, MemoryErrors, RowRemap, XID79 …
	Message string // what is the matter, and what to do; "" when healthy
}

// XID is what one of the driver's error numbers means.
type XID struct {
	Number   int
	Name     string
	Severity State // Healthy: the fault of a program, the device is well
	Do       string
}

func (x XID) String() string { return fmt.Sprintf("XID %d: %s; %s", x.Number, x.Name, x.Do) }

const (
	resetNow    = "end what runs on the device and reset it"
	resetLater  = "reset the device when nothing runs on it"
	replace     = "power the machine off and on; if the error comes back, replace the device"
	ofProgram   = "a program did this, the device is well"
	ofThisBuild = "if this process did it, report it with the kernel's name"
)

// xids are the numbers that the driver's documentation gives a meaning, without those of graphics and
// video. Source: NVIDIA's "XID Errors" and its device plugin for Kubernetes, which leaves the same numbers to programs.
var xids = []XID{
	{8, "the device stopped processing", Healthy, ofProgram},
	{13, "a kernel computed something illegal (graphics engine exception)", Healthy, ofThisBuild},
	{31, "a kernel used memory that is not mapped", Healthy, ofThisBuild},
	{32, "the stream of commands was broken", Degraded, "look for further XIDs; if the error comes back, " + resetLater},
	{43, "a program's work was ended after an error", Healthy, ofProgram},
	{45, "a program's work was cleaned up, as when it is killed", Healthy, ofProgram},
	{48, "two bits of memory flipped at once (uncorrectable ECC error)", Lost, resetNow},
	{61, "the device's microcontroller stopped", Lost, resetNow},
	{62, "the device's microcontroller halted", Lost, resetNow},
	{63, "a row of memory is marked to be replaced by a spare one", Degraded, resetLater},
	{64, "a row of memory could not be marked to be replaced", Lost, resetNow + "; if the error comes back, replace the device"},
	{68, "a video engine failed", Healthy, ofProgram},
	{69, "a kernel computed something illegal (class error)", Healthy, ofThisBuild},
	{74, "a link to another device failed (NVLink)", Degraded, "check the links; " + resetLater},
	{79, "the device has fallen off the bus", Lost, replace},
	{92, "many single bits of memory flip (corrected)", Degraded, "watch it; " + resetLater},
	{94, "memory flipped, and the error was contained in the program that read it", Lost, "start the worker again, and " + resetLater},
	{95, "memory flipped, and the error was not contained: all results are in doubt", Lost, resetNow},
	{109, "a switch between programs took too long", Healthy, ofProgram},
	{119, "the device's own processor does not answer the driver (GSP)", Lost, resetNow + ", or start the machine again"},
	{120, "the device's own processor failed (GSP)", Lost, resetNow + ", or start the machine again"},
	{121, "the link to the processor had corrected errors (C2C)", Degraded, resetLater},
	{123, "the device's power controller does not answer", Degraded, resetLater},
	{136, "a link's training failed", Degraded, resetLater},
	{137, "a link had an error while a kernel used it (NVLink)", Healthy, "look for the error of the device at the other end"},
	{140, "memory flipped and could not be recovered (uncorrectable ECC error)", Lost, resetNow},
	{143, "the device did not start", Lost, resetNow},
	{154, "the driver asks for the device to be recovered", Degraded, "see the kernel's log for what it asks for"},
}

// Meaning is what an XID means. An unknown one is a defect that does not stop work.
func Meaning(xid int) XID {
	if i := slices.IndexFunc(xids, func(x XID) bool { return x.Number == xid }); i >= 0 {
		return xids[i]
	}
	return XID{xid, "an error that is not in the table", Degraded, "see the kernel's log and NVIDIA's list of XIDs"}
}

// HealthOf judges a device by its last reading and by its events since the process started: the worst
// thing counts, and of equally bad ones the newest. An XID stays true until the process ends, since only a
// reset mends what it says; heat and power pass.
func HealthOf(r Reading, events []Event) Health {
	worst := Health{State: Healthy, Reason: "Healthy"}
	is := func(state State, reason, message string) {
		if state > worst.State {
			worst = Health{state, reason, message}
		}
	}
	for _, e := range slices.Backward(events) {
		switch x := Meaning(e.XID); {
		case e.XID == 0 && e.Fatal:
			is(Lost, "MemoryErrors", e.Message)
		case e.XID == 0:
			is(Degraded, "MemoryErrors", e.Message)
		case e.Fatal:
			is(Lost, fmt.Sprintf("XID%d", e.XID), e.Message)
		case x.Severity == Degraded:
			is(Degraded, fmt.Sprintf("XID%d", e.XID), e.Message)
		}
	}
	if r.RemapFailed {
		is(Degraded, "RowRemap", "no spare rows of memory are left; replace the device")
	}
	if r.RemapPending {
		is(Degraded, "RowRemap", "a row of memory waits to be replaced; "+resetLater)
	}
	if n := r.ECCUncorrected; n.Known && n.Value > 0 {
		is(Degraded, "MemoryErrors", fmt.Sprintf("%.0f uncorrectable errors of memory since the driver was loaded; %s", n.Value, resetLater))
	}
	degrees := ""
	if r.TemperatureCelsius.Known {
		degrees = fmt.Sprintf(" at %.0f °C", r.TemperatureCelsius.Value)
	}
	switch {
	case slices.Contains(r.Throttled, ThrottleHeatHard):
		is(Degraded, "Heat", "clocks are halved because of heat"+degrees+"; check the cooling")
	case slices.Contains(r.Throttled, ThrottleHeat):
		is(Degraded, "Heat", "clocks are lowered because of heat"+degrees+"; check the cooling")
	case slices.Contains(r.Throttled, ThrottlePowerBrake):
		is(Degraded, "PowerBrake", "the machine's power supply made the device slow down; check the supply")
	case slices.Contains(r.Throttled, ThrottleHardware):
		is(Degraded, "Hardware", "the hardware slows the device down; check cooling and power")
	}
	return worst
}

// Room is what strangers leave of a device for models, and why: its memory less what other processes
// hold, less overhead: what this process needs beside models (its context, kernels, graphs). models is what
// models hold now, which nobody can take away: at least that is left.
func (r Reading) Room(models, overhead int64) (bytes int64, why string) {
	bytes = max(r.Total-r.Others-overhead, models, 0)
	if r.Others == 0 {
		return bytes, residency.Bytes(r.Total)
	}
	var who []string
	for _, p := range r.Processes {
		if !p.Ours && len(who) < 3 {
			who = append(who, fmt.Sprint(p.PID))
		}
	}
	why = fmt.Sprintf("%s, less %s that other processes hold", residency.Bytes(r.Total), residency.Bytes(r.Others))
	if len(who) > 0 {
		why += " (" + strings.Join(who, ", ") + ")"
	}
	return bytes, why
}
