package controllers

// Measure is what a plan makes of the fleet, in numbers by which policies are compared.
type Measure struct {
	Homes    int // of Models, on workers that stay
	Unplaced int // homes that are wanted and that there are not
	Devices  int // of workers that may hold homes
	Used     int // of them, with a home
	Capacity int64
	// Fragmentation is how many bytes that are free the Models as they are now could not use,
	// were one more of them to come (FGD, USENIX ATC 2023).
	Fragmentation float64
}

// DecideAndMeasure is Decide, and what its plan makes of the fleet.
func DecideAndMeasure(seen Seen) (Plan, Measure) {
	if !seen.Settled {
		return Decide(seen), Measure{}
	}
	d := decide(seen)
	var m Measure
	for _, model := range d.models {
		m.Unplaced += model.missing
	}
	for _, s := range d.stations {
		if !s.usable {
			continue
		}
		used := map[string]bool{}
		for _, h := range s.homes {
			m.Homes++
			for _, device := range h.devices {
				used[device] = true
			}
		}
		m.Used += len(used)
		m.Devices += len(s.Report.Devices)
		for i := range s.Report.Devices {
			m.Capacity += s.Report.Devices[i].CapacityBytes
		}
	}
	m.Fragmentation = d.fleet.Fragmentation()
	return d.plan, m
}
