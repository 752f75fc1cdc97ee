//go:build cuda && cgo

package device

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/estiba/estiba/runtime/device/library"
)

// NVML reads the devices that NVIDIA's driver knows. held is what this process holds of them. The error is
// an ErrNoNVML that says why not.
//
// A call of a function that the installed driver's library lacks, or of any before it is initialized, ends the
// process: go-nvml resolves symbols when they are first called. So each call below asks first (has).
func NVML(held Held) (Monitor, error) {
	if err := library.Try("libnvidia-ml.so.1", "nvmlInit_v2", "nvmlInit"); err != nil {
		if errors.Is(err, library.ErrMissing) {
			err = fmt.Errorf("%w (a container is given it with NVIDIA_DRIVER_CAPABILITIES=compute,utility)", err)
		}
		return nil, fmt.Errorf("%w: %w", ErrNoNVML, err)
	}
	if ret := nvml.Init(); ret != nvml.SUCCESS {
		return nil, fmt.Errorf("%w: %s", ErrNoNVML, initFailed(ret))
	}
	m := &nvmlMonitor{held: held, library: nvml.Extensions(), symbols: map[string]bool{}, devices: map[string]*nvmlDevice{}}
	m.ctx, m.stop = context.WithCancel(context.Background())
	if !m.has("nvmlDeviceGetCount_v2", "nvmlDeviceGetCount") || !m.has("nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex") || !m.has("nvmlDeviceGetUUID") {
		return nil, errors.Join(fmt.Errorf("%w: its library lists no devices", ErrNoNVML), m.Close())
	}
	m.initialNamespace = inInitialNamespace()
	return m, nil
}

// initFailed says why NVML cannot be used. Only here nvmlErrorString may not be asked.
func initFailed(ret nvml.Return) string {
	switch ret {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return "libnvidia-ml.so.1 is not found"
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return "the kernel module is not loaded"
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return "libnvidia-ml.so.1 is of another version than the kernel module, as after an upgrade; restart the container or the machine"
	case nvml.ERROR_NO_PERMISSION:
		return "this process may not use it"
	case nvml.ERROR_OPERATING_SYSTEM:
		return "the control group of this process blocks it"
	}
	return fmt.Sprintf("NVML's error %d", int(ret))
}

// inInitialNamespace reports whether process numbers are here what they are to the driver. The number is that
// of the kernel's first PID namespace.
func inInitialNamespace() bool {
	link, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && link == "pid:[4026531836]"
}

type nvmlMonitor struct {
	held             Held
	library          nvml.ExtendedInterface
	initialNamespace bool
	ctx              context.Context // until Close
	stop             func()
	events           sync.WaitGroup

	calls  sync.RWMutex // held while NVML is called
	closed bool

	mu      sync.Mutex
	symbols map[string]bool        // name -> the library has it
	devices map[string]*nvmlDevice // UUID -> device, as it was listed last: one that is lost is listed no more, and says so if asked
}

// nvmlDevice is a device with its handle.
type nvmlDevice struct {
	Unit
	handle nvml.Device
	whole  nvml.Device // the GPU: handle, but for a MIG instance
	gpu    int         // instance of a MIG instance's GPU
	within int         // compute instance in that
}

// has reports whether the library has one of some symbols. Those of one function are all asked for where
// go-nvml takes the newest that there is.
func (m *nvmlMonitor) has(names ...string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(names, func(name string) bool {
		there, known := m.symbols[name]
		if !known {
			there = m.library.LookupSymbol(name) == nil
			m.symbols[name] = there
		}
		return there
	})
}

// text is what an error of NVML's means.
func (m *nvmlMonitor) text(ret nvml.Return) error {
	switch {
	case ret == nvml.ERROR_GPU_IS_LOST || ret == nvml.ERROR_RESET_REQUIRED:
		return ErrGone
	case m.has("nvmlErrorString"):
		return errors.New(ret.Error())
	}
	return fmt.Errorf("NVML's error %d", int(ret))
}

// open lets nobody close NVML until done is called.
func (m *nvmlMonitor) open() (done func(), err error) {
	m.calls.RLock()
	if m.closed {
		m.calls.RUnlock()
		return nil, errors.New("the monitor of devices is closed")
	}
	return m.calls.RUnlock, nil
}

// Devices lists the GPUs that this process may use, each followed by its MIG instances. A GPU that does not
// answer is left out.
func (m *nvmlMonitor) Devices() ([]Unit, error) {
	done, err := m.open()
	if err != nil {
		return nil, err
	}
	defer done()
	n, ret := nvml.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count devices: %v", m.text(ret)) // whichever of them it is that does not answer
	}
	var units []Unit
	devices := map[string]*nvmlDevice{}
	add := func(d *nvmlDevice) {
		d.Total, _, _, _ = m.memory(d.handle) // 0 if it does not say
		devices[d.UUID] = d
		units = append(units, d.Unit)
	}
	for i := range n {
		handle, ret := nvml.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // given to another container, or lost
		}
		uuid, ret := handle.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		d := &nvmlDevice{Unit: Unit{UUID: uuid, Index: i}, handle: handle, whole: handle}
		if m.has("nvmlDeviceGetName") {
			d.Name, _ = handle.GetName()
		}
		if m.has("nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetPciInfo_v2", "nvmlDeviceGetPciInfo") {
			if pci, ret := handle.GetPciInfo(); ret == nvml.SUCCESS {
				d.PCI = fmt.Sprintf("%08X:%02X:%02X.0", pci.Domain, pci.Bus, pci.Device)
			}
		}
		instances := m.instances(d)
		add(d)
		for _, instance := range instances {
			add(instance)
		}
	}
	m.mu.Lock()
	maps.Copy(m.devices, devices)
	m.mu.Unlock()
	return units, nil
}

// instances are the MIG instances of a GPU that this process may use; it notes whether there could be any.
func (m *nvmlMonitor) instances(d *nvmlDevice) (all []*nvmlDevice) {
	if !m.has("nvmlDeviceGetMigMode") || !m.has("nvmlDeviceGetMaxMigDeviceCount") || !m.has("nvmlDeviceGetMigDeviceHandleByIndex") {
		return nil
	}
	if mode, _, ret := d.handle.GetMigMode(); ret != nvml.SUCCESS || mode != nvml.DEVICE_MIG_ENABLE {
		return nil
	}
	d.Split = true
	n, ret := d.handle.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil
	}
	for k := range n {
		handle, ret := d.handle.GetMigDeviceHandleByIndex(k)
		if ret != nvml.SUCCESS {
			continue // there are gaps
		}
		uuid, ret := handle.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		i := &nvmlDevice{
			Unit:   Unit{UUID: uuid, Name: d.Name + " MIG", PCI: d.PCI, Index: d.Index, MIG: true, Parent: d.UUID},
			handle: handle, whole: d.handle, gpu: -1, within: -1,
		}
		if m.has("nvmlDeviceGetName") {
			if name, ret := handle.GetName(); ret == nvml.SUCCESS {
				i.Name = name
			}
		}
		if m.has("nvmlDeviceGetGpuInstanceId") {
			if id, ret := handle.GetGpuInstanceId(); ret == nvml.SUCCESS {
				i.gpu = id
			}
		}
		if m.has("nvmlDeviceGetComputeInstanceId") {
			if id, ret := handle.GetComputeInstanceId(); ret == nvml.SUCCESS {
				i.within = id
			}
		}
		all = append(all, i)
	}
	return all
}

// device finds a device by its UUID, among those that were ever listed.
func (m *nvmlMonitor) device(uuid string) *nvmlDevice {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.devices[uuid]
}

// memory is a device's, in bytes, without what the driver reserves. Drivers before 510 count that as used.
func (m *nvmlMonitor) memory(handle nvml.Device) (total, free, used int64, ret nvml.Return) {
	if m.has("nvmlDeviceGetMemoryInfo_v2") {
		i, ret := handle.GetMemoryInfo_v2()
		if ret == nvml.SUCCESS {
			return int64(i.Total - i.Reserved), int64(i.Free), int64(i.Used), ret
		}
		if ret == nvml.ERROR_GPU_IS_LOST || ret == nvml.ERROR_RESET_REQUIRED {
			return 0, 0, 0, ret
		}
	}
	if !m.has("nvmlDeviceGetMemoryInfo") {
		return 0, 0, 0, nvml.ERROR_FUNCTION_NOT_FOUND
	}
	i, ret := handle.GetMemoryInfo()
	return int64(i.Total), int64(i.Free), int64(i.Used), ret
}

// Read reads a device. Its memory must be readable, all other figures may be absent.
func (m *nvmlMonitor) Read(uuid string) (Reading, error) {
	held := m.held.of(uuid)
	d := m.device(uuid)
	var failed error
	if d != nil {
		r, err := m.read(d, held)
		if err == nil || errors.Is(err, ErrGone) {
			return r, err
		}
		failed = err
	}
	units, err := m.Devices() // a MIG instance may be made and destroyed at any time
	listed := slices.ContainsFunc(units, func(u Unit) bool { return u.UUID == uuid })
	switch again := m.device(uuid); {
	case listed && (d == nil || again.handle != d.handle):
		return m.read(again, held)
	case listed || err != nil:
		return Reading{}, cmp.Or(failed, err)
	}
	return Reading{}, fmt.Errorf("device %s: %w", uuid, ErrUnlisted)
}

func (m *nvmlMonitor) read(d *nvmlDevice, held int64) (Reading, error) {
	done, err := m.open()
	if err != nil {
		return Reading{}, err
	}
	defer done()
	r := Reading{Time: time.Now()}
	total, free, used, ret := m.memory(d.handle)
	if ret != nvml.SUCCESS {
		return Reading{}, fmt.Errorf("read memory of device %s: %w", d.UUID, m.text(ret))
	}
	r.Total, r.Free = total, free
	m.share(&r, d, used, held)
	if err := m.figures(&r, d); err != nil {
		return Reading{}, fmt.Errorf("read device %s: %w", d.UUID, err)
	}
	return r, nil
}

// share divides what is used of a device into what this process holds and what others do.
func (m *nvmlMonitor) share(r *Reading, d *nvmlDevice, used, held int64) {
	r.Ours, r.OursFrom = held, OursHeld
	if m.has("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetComputeRunningProcesses") {
		list, _ := d.handle.GetComputeRunningProcesses() // nil where it is not shown
		for _, p := range list {
			bytes := int64(p.UsedGpuMemory)
			if bytes < 0 { // NVML_VALUE_NOT_AVAILABLE
				continue
			}
			// Newer drivers count processes as this process's namespace does, older ones as the first one does: a number
			// that means another process there is unlikely to have as much as is held here.
			ours := int(p.Pid) == os.Getpid() && (m.initialNamespace || bytes >= held)
			r.Processes = append(r.Processes, Process{PID: int(p.Pid), Bytes: bytes, Ours: ours})
			if ours {
				r.Ours, r.OursFrom = bytes, OursListed
			}
		}
	}
	r.Ours = min(r.Ours, used)
	r.Others = max(used-r.Ours, 0)
	r.Total = r.Free + r.Ours + r.Others // as it is, but for what changes between two calls
}

// figures reads what is not memory. Of a MIG instance that is its GPU's, and what belongs to the whole of it (power,
// energy, utilization) is absent.
func (m *nvmlMonitor) figures(r *Reading, d *nvmlDevice) error {
	var gone error
	told := func(ret nvml.Return) bool {
		if ret == nvml.SUCCESS {
			return true
		}
		if err := m.text(ret); errors.Is(err, ErrGone) {
			gone = err
		}
		return false
	}
	g := d.whole
	if m.has("nvmlDeviceGetTemperature") {
		if n, ret := g.GetTemperature(nvml.TEMPERATURE_GPU); told(ret) {
			r.TemperatureCelsius = Known(float64(n))
		}
	}
	switch {
	case m.has("nvmlDeviceGetCurrentClocksEventReasons"):
		if n, ret := g.GetCurrentClocksEventReasons(); told(ret) {
			r.Throttled = throttled(n)
		}
	case m.has("nvmlDeviceGetCurrentClocksThrottleReasons"): // its name before 535
		if n, ret := g.GetCurrentClocksThrottleReasons(); told(ret) {
			r.Throttled = throttled(n)
		}
	}
	if m.has("nvmlDeviceGetTotalEccErrors") {
		if n, ret := g.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); told(ret) {
			r.ECCUncorrected = Known(float64(n))
		}
	}
	if m.has("nvmlDeviceGetRemappedRows") {
		if _, _, pending, failed, ret := g.GetRemappedRows(); told(ret) {
			r.RemapPending, r.RemapFailed = pending, failed
		}
	}
	if d.MIG {
		return gone
	}
	if m.has("nvmlDeviceGetUtilizationRates") {
		if u, ret := g.GetUtilizationRates(); told(ret) {
			r.Utilization = Known(float64(u.Gpu) / 100)
		}
	}
	if m.has("nvmlDeviceGetPowerUsage") {
		if n, ret := g.GetPowerUsage(); told(ret) {
			r.PowerWatts = Known(float64(n) / 1000)
		}
	}
	if m.has("nvmlDeviceGetEnforcedPowerLimit") {
		if n, ret := g.GetEnforcedPowerLimit(); told(ret) {
			r.PowerLimitWatts = Known(float64(n) / 1000)
		}
	}
	if m.has("nvmlDeviceGetTotalEnergyConsumption") { // from Volta on
		if n, ret := g.GetTotalEnergyConsumption(); told(ret) {
			r.EnergyJoules = Known(float64(n) / 1000)
		}
	}
	return gone
}

// throttled names NVML's reasons. Being idle, or set to lower clocks by the operator, is none.
func throttled(reasons uint64) (names []string) {
	for _, r := range []struct {
		bit  uint64
		name string
	}{
		{nvml.ClocksThrottleReasonHwThermalSlowdown, ThrottleHeatHard},
		{nvml.ClocksEventReasonSwThermalSlowdown, ThrottleHeat},
		{nvml.ClocksThrottleReasonHwPowerBrakeSlowdown, ThrottlePowerBrake},
		{nvml.ClocksEventReasonSwPowerCap, ThrottlePower},
	} {
		if reasons&r.bit != 0 {
			names = append(names, r.name)
		}
	}
	const told = nvml.ClocksThrottleReasonHwThermalSlowdown | nvml.ClocksThrottleReasonHwPowerBrakeSlowdown
	if reasons&nvml.ClocksThrottleReasonHwSlowdown != 0 && reasons&told == 0 { // it comes with those
		names = append(names, ThrottleHardware)
	}
	return names
}

// Events waits for XIDs and for double-bit errors of all devices.
func (m *nvmlMonitor) Events(ctx context.Context) <-chan Event {
	out := make(chan Event)
	done, err := m.open()
	if err != nil {
		close(out)
		return out
	}
	defer done()
	set, whose, err := m.register()
	if err != nil {
		close(out)
		return out
	}
	m.events.Go(func() {
		defer close(out)
		defer nvml.EventSetFree(set)
		for ctx.Err() == nil && m.ctx.Err() == nil {
			const wait = 250 // milliseconds, after which it looks whether it shall end
			data, ret := set.Wait(wait)
			switch ret {
			case nvml.SUCCESS:
			case nvml.ERROR_TIMEOUT:
				continue
			default: // a lost device may fail it at once, and the others' events still come
				select {
				case <-time.After(wait * time.Millisecond):
				case <-ctx.Done():
				case <-m.ctx.Done():
				}
				continue
			}
			for _, e := range m.event(data, whose) {
				select {
				case out <- e:
				case <-ctx.Done():
				case <-m.ctx.Done():
				}
			}
		}
	})
	return out
}

// register makes a set of the devices' events. whose tells their GPUs, by handle.
func (m *nvmlMonitor) register() (set nvml.EventSet, whose map[nvml.Device]string, err error) {
	if !m.has("nvmlEventSetCreate") || !m.has("nvmlEventSetFree") || !m.has("nvmlEventSetWait_v2", "nvmlEventSetWait") || !m.has("nvmlDeviceRegisterEvents") {
		return nil, nil, errors.New("the driver has no events")
	}
	set, ret := nvml.EventSetCreate()
	if ret != nvml.SUCCESS {
		return nil, nil, m.text(ret)
	}
	whose = map[nvml.Device]string{}
	n, _ := nvml.DeviceGetCount()
	for i := range n {
		handle, ret := nvml.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue
		}
		uuid, ret := handle.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		types := uint64(nvml.EventTypeXidCriticalError | nvml.EventTypeDoubleBitEccError)
		if m.has("nvmlDeviceGetSupportedEventTypes") {
			if supported, ret := handle.GetSupportedEventTypes(); ret == nvml.SUCCESS {
				types &= supported
			}
		}
		if types != 0 && handle.RegisterEvents(types, set) == nvml.SUCCESS {
			whose[handle] = uuid
		}
	}
	if len(whose) == 0 {
		nvml.EventSetFree(set)
		return nil, nil, errors.New("no device has events")
	}
	return set, whose, nil
}

// event is what NVML reported: of each MIG instance that it concerns if it names one, else of the GPU.
func (m *nvmlMonitor) event(data nvml.EventData, whose map[nvml.Device]string) (events []Event) {
	uuid := whose[data.Device]
	if uuid == "" {
		return nil
	}
	now := time.Now()
	if data.EventType != nvml.EventTypeXidCriticalError {
		return []Event{{UUID: uuid, Time: now, Message: "two bits of memory flipped at once (uncorrectable ECC error); " + resetLater}}
	}
	const none = 0xFFFFFFFF
	xid := int(data.EventData)
	if data.GpuInstanceId != none {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, d := range m.devices {
			if d.Parent == uuid && d.gpu == int(data.GpuInstanceId) && (data.ComputeInstanceId == none || d.within == int(data.ComputeInstanceId)) {
				events = append(events, NewEvent(d.UUID, now, xid))
			}
		}
	}
	if len(events) == 0 {
		events = []Event{NewEvent(uuid, now, xid)}
	}
	return events
}

// Close ends Events and lets go of the driver's library.
func (m *nvmlMonitor) Close() error {
	m.stop()
	m.events.Wait()
	m.calls.Lock()
	defer m.calls.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	if !m.has("nvmlShutdown") {
		return nil
	}
	if ret := nvml.Shutdown(); ret != nvml.SUCCESS {
		return fmt.Errorf("let go of NVML: %w", m.text(ret))
	}
	return nil
}
