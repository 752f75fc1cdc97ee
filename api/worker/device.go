package worker

import "time"

// Device is one device of a worker, its account in extents.
type Device struct {
	Name          string `json:"name"` // "cpu-0", "gpu-0"
	Kind          string `json:"kind"` // "cpu", "cuda"
	Description   string `json:"description,omitempty"`
	ExtentBytes   int64  `json:"extentBytes"`
	CapacityBytes int64  `json:"capacityBytes"` // the claim, less headroom: what models may use
	UsedBytes     int64  `json:"usedBytes"`     // admitted: 0 <= used <= capacity
	// Load is the sum of its homes' loads.
	Load float64 `json:"load"`

	// ClaimBytes is what CapacityBytes is while other processes take no more of the device than
	// when the worker started; 0: nobody watches them.
	ClaimBytes int64 `json:"claimBytes,omitempty"`
	// Limit says in a sentence why CapacityBytes is less than ClaimBytes.
	Limit string `json:"limit,omitempty"`
	// MIG: it is an instance of a GPU, which has no power, energy or utilization of its own.
	MIG bool `json:"mig,omitempty"`
	// Unwatched: it is a GPU, and nobody watches it: it has no Health, Readings or Limit.
	Unwatched bool `json:"unwatched,omitempty"`
	// Health is absent where nobody watches the device.
	Health Health `json:"health,omitzero"`
	// Readings are its own figures; nil: it has none, or they have not been read yet.
	Readings *Readings `json:"readings,omitempty"`
}

// Lost reports whether nothing can be computed on the device any more.
func (d *Device) Lost() bool { return d.Health.State == DeviceLost }

// Whole is what models may use while no other process is in the way.
func (d *Device) Whole() int64 { return max(d.ClaimBytes, d.CapacityBytes) }

// Health says how fit a device is to compute.
type Health struct {
	State   HealthState `json:"state"`
	Reason  string      `json:"reason,omitempty"`  // one word: Heat, MemoryErrors, XID79; none of a healthy one
	Message string      `json:"message,omitempty"` // what is the matter, and what to do
	Since   time.Time   `json:"since,omitzero"`    // it has been in this state
}

// ReasonMissing is why a device is lost that was never there, though the worker was to be given one: State.Missing.
const ReasonMissing = "Missing"

// HealthState is how fit.
type HealthState string

// The states, from best to worst.
const (
	DeviceHealthy  HealthState = "Healthy"
	DeviceDegraded HealthState = "Degraded" // computes more slowly, or needs a reset: new homes go elsewhere if they can
	DeviceLost     HealthState = "Lost"     // takes nothing, and what is at home there needs another home
)

// Readings are a device's own figures, read once a second: NVML's. One that the device does
// not tell is absent.
type Readings struct {
	TotalBytes  int64 `json:"totalBytes"`
	FreeBytes   int64 `json:"freeBytes"`
	OthersBytes int64 `json:"othersBytes"` // held by other processes; the rest is the worker's
	// Utilization is the share of the last sampling period in which a kernel ran, 0 to 1.
	Utilization        *float64 `json:"utilization,omitempty"`
	PowerWatts         *float64 `json:"powerWatts,omitempty"` // of the whole board
	TemperatureCelsius *float64 `json:"temperatureCelsius,omitempty"`
	// EnergyJoules are what the device has used since the worker began to watch it, and
	// IdleJoules those of them in which none of the worker's models computed. The others are
	// divided among the models: HomeState.EnergyJoules.
	EnergyJoules *float64 `json:"energyJoules,omitempty"`
	IdleJoules   *float64 `json:"idleJoules,omitempty"`
	// Throttled says why its clocks are lower than wanted: Heat, HeatHard, Power, PowerBrake, Hardware.
	Throttled []string `json:"throttled,omitempty"`
}
