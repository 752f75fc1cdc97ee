package device

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestHealthOf(t *testing.T) {
	event := func(xid int) Event { return NewEvent("GPU-1", time.Time{}, xid) }
	for name, c := range map[string]struct {
		r      Reading
		events []Event
		state  State
		reason string
		says   string
	}{
		"nothing":                   {state: Healthy, reason: "Healthy"},
		"at the power limit":        {r: Reading{Throttled: []string{ThrottlePower}}, state: Healthy, reason: "Healthy"},
		"hot":                       {r: Reading{Throttled: []string{ThrottlePower, ThrottleHeat}, TemperatureCelsius: Known(91)}, state: Degraded, reason: "Heat", says: "lowered because of heat at 91 °C"},
		"very hot":                  {r: Reading{Throttled: []string{ThrottleHeat, ThrottleHeatHard}}, state: Degraded, reason: "Heat", says: "halved because of heat; check"},
		"the supply is weak":        {r: Reading{Throttled: []string{ThrottlePowerBrake}}, state: Degraded, reason: "PowerBrake", says: "supply"},
		"slow":                      {r: Reading{Throttled: []string{ThrottleHardware}}, state: Degraded, reason: "Hardware"},
		"errors of memory":          {r: Reading{ECCUncorrected: Known(2)}, state: Degraded, reason: "MemoryErrors", says: "2 uncorrectable"},
		"none":                      {r: Reading{ECCUncorrected: Known(0)}, state: Healthy, reason: "Healthy"},
		"a row to replace":          {r: Reading{RemapPending: true}, state: Degraded, reason: "RowRemap", says: "reset the device when"},
		"no row left":               {r: Reading{RemapPending: true, RemapFailed: true}, state: Degraded, reason: "RowRemap", says: "replace the device"},
		"a program's fault":         {events: []Event{event(13), event(31), event(43), event(45)}, state: Healthy, reason: "Healthy"},
		"off the bus":               {events: []Event{event(13), event(79), event(63)}, r: Reading{Throttled: []string{ThrottleHeat}}, state: Lost, reason: "XID79", says: "fallen off the bus"},
		"the newest counts":         {events: []Event{event(48), event(95)}, state: Lost, reason: "XID95"},
		"a row, before heat":        {events: []Event{event(63)}, r: Reading{Throttled: []string{ThrottleHeat}}, state: Degraded, reason: "XID63"},
		"unknown":                   {events: []Event{event(777)}, state: Degraded, reason: "XID777", says: "XID 777"},
		"an error without a number": {events: []Event{{Message: "flipped"}}, state: Degraded, reason: "MemoryErrors", says: "flipped"},
	} {
		got := HealthOf(c.r, c.events)
		if got.State != c.state || got.Reason != c.reason || !strings.Contains(got.Message, c.says) || (got.Message == "") != (c.state == Healthy) {
			t.Errorf("%s: %v %q %q", name, got.State, got.Reason, got.Message)
		}
	}
	// the table says something of each
	last := 0
	for _, x := range xids {
		if x.Number <= last || x.Name == "" || x.Do == "" || strings.HasSuffix(x.Do, ".") {
			t.Errorf("%+v", x)
		}
		last = x.Number
		if e := event(x.Number); e.Fatal != (x.Severity == Lost) || !strings.Contains(e.Message, x.Name) {
			t.Errorf("%+v", e)
		}
	}
	for _, xid := range []int{48, 79, 94, 95} {
		if Meaning(xid).Severity != Lost {
			t.Errorf("XID %d does not lose the device", xid)
		}
	}
}

func TestRoom(t *testing.T) {
	r := Reading{Total: 80 << 30, Others: 30 << 30, Processes: []Process{{PID: 1, Bytes: 20 << 30}, {PID: 2, Ours: true}, {PID: 3, Bytes: 10 << 30}}}
	for _, c := range []struct{ models, overhead, want int64 }{
		{0, 0, 50 << 30}, {0, 1 << 30, 49 << 30}, {60 << 30, 1 << 30, 60 << 30}, {0, 60 << 30, 0},
	} {
		if got, _ := r.Room(c.models, c.overhead); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	if _, why := r.Room(0, 0); why != "80 GiB, less 30 GiB that other processes hold (1, 3)" {
		t.Error(why)
	}
	if _, why := (Reading{Total: 80 << 30}).Room(0, 0); why != "80 GiB" {
		t.Error(why)
	}
}

// units is a Monitor of readings.
type units struct {
	Monitor
	units    []Unit
	readings map[string]Reading
}

func (u units) Devices() ([]Unit, error) { return u.units, nil }

func (u units) Read(uuid string) (Reading, error) {
	r, ok := u.readings[uuid]
	if !ok {
		return Reading{}, ErrGone
	}
	return r, nil
}

func TestClaim(t *testing.T) {
	m := units{
		units: []Unit{{UUID: "a", Name: "A100"}, {UUID: "b", Split: true}, {UUID: "c", Name: "A100 MIG", MIG: true, Parent: "b"}},
		readings: map[string]Reading{
			"a": {Total: 80 << 30, Others: 30 << 30}, "c": {Total: 100 << 20},
		},
	}
	got, err := Claim(m, "cuda", 1<<30, Options{Headroom: 10})
	want := []Device{
		{Name: "gpu-0", Kind: "cuda", UUID: "a", Extent: 2 << 20, Capacity: 47351595008, Description: "A100, 80 GiB, less 30 GiB that other processes hold, 10 % headroom"},
		{Name: "gpu-1", Kind: "cuda", UUID: "c", Extent: 64 << 10, Capacity: 70778880, Description: "A100 MIG, 100 MiB, 10 % headroom"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v\n%+v\n%+v", err, got, want)
	}
	if _, err := Claim(m, "cuda", 0, Options{Memory: 1 << 10}); err == nil || !strings.HasSuffix(err.Error(), "leaves no room for one; raise --memory, or spec.device.memory of the pool") {
		t.Error(err)
	}
	if got, err := Claim(m, "cuda", 0, Options{Memory: 50 << 20}); err != nil || got[0].Capacity != 50<<20 || got[1].Capacity != 50<<20 || !strings.Contains(got[0].Description, "as asked for") {
		t.Error(got, err)
	}
	m.readings["c"] = Reading{Total: 100 << 20, Others: 100 << 20}
	if _, err := Claim(m, "cuda", 0, Options{}); err == nil || !strings.Contains(err.Error(), "device c (A100 MIG) has no room") {
		t.Error(err)
	}
	delete(m.readings, "c")
	m.units[2].Total = 100 << 20
	if got, err := Claim(m, "cuda", 0, Options{}); err != nil || len(got) != 2 || got[0].Lost || !got[1].Lost || got[1].Capacity != 100<<20 || got[1].Description != "A100 MIG, which does not answer" {
		t.Error(got, err) // one that is lost keeps the other from nothing
	}
	if _, err := Claim(units{units: m.units[1:2]}, "cuda", 0, Options{}); !errors.Is(err, ErrNoDevice) {
		t.Error(err)
	}
}

// TestLostIsTold: the errors that take a device away are those that docs/gpus.md lists.
func TestLostIsTold(t *testing.T) {
	text, err := os.ReadFile("../../docs/gpus.md")
	if err != nil {
		t.Fatal(err)
	}
	_, row, _ := strings.Cut(string(text), "| it falls off the bus (XID ")
	row, _, _ = strings.Cut(row, "|")
	var told, lost []string
	for _, n := range regexp.MustCompile(`[(, ](\d+)\b`).FindAllStringSubmatch(" "+row, -1) {
		if n[1] != "503" { // of HTTP
			told = append(told, n[1])
		}
	}
	for _, x := range xids {
		if x.Severity == Lost {
			lost = append(lost, strconv.Itoa(x.Number))
		}
	}
	slices.Sort(told)
	slices.Sort(lost)
	if !slices.Equal(told, lost) {
		t.Errorf("docs/gpus.md has %v, want %v", told, lost)
	}
}
