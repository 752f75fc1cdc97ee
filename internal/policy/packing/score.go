package packing

// Score rates a place where w fits; higher is better. It decides among the
// places of the best tier; equals go by Worker.Rank, then by name.
type Score func(at View, w *Want) float64

// View is a worker as a Score sees it, and the devices on which w would come.
type View struct {
	at     *worker
	chosen []*device
}

// Worker is the worker.
func (v View) Worker() Worker { return v.at.Worker }

// FreeHost is what is left of the worker's host.
func (v View) FreeHost() Host { return v.at.free }

// Devices is how many devices the worker has.
func (v View) Devices() int { return len(v.at.devices) }

// Device is the i-th device, in the order of their names.
func (v View) Device(i int) Device { return v.at.devices[i].Device }

// Free is the exclusive room on the i-th device, in bytes.
func (v View) Free(i int) int64 { return v.at.devices[i].idle() }

// Homes is how many homes of models the i-th device has.
func (v View) Homes(i int) int { return len(v.at.devices[i].held) }

// Home is the j-th home on the i-th device, in the order of their models.
func (v View) Home(i, j int) Home { return v.at.devices[i].held[j].Home }

// Chosen reports whether w would come on the i-th device.
func (v View) Chosen(i int) bool {
	for _, d := range v.chosen {
		if d == v.at.devices[i] {
			return true
		}
	}
	return false
}
