package worker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/engine"
)

// instruments are a Monitor's of one device, which a test sets.
type instruments struct {
	mu      sync.Mutex
	reading device.Reading
	err     error
	watts   float64
	since   time.Time
	hangs   bool
	closed  bool
	happens chan device.Event
}

func (m *instruments) Devices() ([]device.Unit, error) {
	return []device.Unit{{UUID: "GPU-1", Split: true}, {UUID: "MIG-1", MIG: true, Parent: "GPU-1"}, {UUID: "GPU-2"}}, nil
}

func (m *instruments) Read(string) (device.Reading, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hang()
	r := m.reading
	r.Time = time.Now()
	if m.watts > 0 {
		r.EnergyJoules = device.Known(7e6 + m.watts*time.Since(m.since).Seconds())
	}
	r.Free = r.Total - r.Others
	return r, m.err
}

func (m *instruments) Events(ctx context.Context) <-chan device.Event {
	context.AfterFunc(ctx, func() { close(m.happens) })
	return m.happens
}

func (m *instruments) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hang()
	m.closed = true
	return nil
}

// hang while the driver does. m.mu is held.
func (m *instruments) hang() {
	for m.hangs {
		m.mu.Unlock()
		time.Sleep(time.Second)
		m.mu.Lock()
	}
}

func (m *instruments) set(change func(*instruments)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

// watchedWorker is one whose device has 12 MiB, of which it claims 10, and is watched.
func watchedWorker(t *testing.T, o *world) (*Worker, *instruments, func()) {
	m := &instruments{reading: device.Reading{Total: 12 * mib}, since: time.Now(), watts: 100, happens: make(chan device.Event)}
	w, end := o.worker(t, func(options *Options) {
		options.Monitor, options.Devices[0].UUID = m, "MIG-1"
	})
	return w, m, end
}

// TestStrangers: what other processes take is not admitted, what was admitted stays, and once they have
// gone for a while there is room again.
func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := watchedWorker(t, o)
		defer end()
		a, b := o.home("a", 4*mib), o.home("b", 4*mib)
		assign(t, w, a)
		after(t, w, time.Second, "a:Resident")
		if d := w.State().Devices[0]; d.CapacityBytes != 10*mib || d.ClaimBytes != 10*mib || d.Limit != "" || !d.MIG || d.Unwatched || d.Health.State != api.DeviceHealthy || d.Readings.TotalBytes != 12*mib {
			t.Errorf("%+v", d)
		}
		m.set(func(m *instruments) { m.reading.Others = 3 * mib })
		time.Sleep(time.Second)
		assign(t, w, a, b)
		after(t, w, 2*time.Second, "a:Resident b:Refused(DoesNotFit)")
		s := w.State()
		if d := s.Devices[0]; d.CapacityBytes != 7*mib || d.ClaimBytes != 10*mib || d.Readings.OthersBytes != 3*mib {
			t.Errorf("%+v", d)
		}
		if got := s.Homes[1].Message; !strings.Contains(got, "Other processes hold 3 MiB of cpu-0's 12 MiB.") {
			t.Error(got)
		}
		m.set(func(m *instruments) { m.reading.Others = 9 * mib }) // more than models leave
		time.Sleep(2 * time.Second)
		if d := w.State().Devices[0]; d.CapacityBytes != 4*mib || d.UsedBytes != 4*mib || !strings.Contains(d.Limit, "Models hold 4 MiB already") {
			t.Errorf("%+v", d)
		}
		after(t, w, 0, "a:Resident b:Refused(DoesNotFit)")
		m.set(func(m *instruments) { m.reading.Others = 0 })
		after(t, w, 5*time.Second, "a:Resident b:Refused(DoesNotFit)")
		after(t, w, 10*time.Second, "a:Resident b:Resident")
		if d := w.State().Devices[0]; d.CapacityBytes != 10*mib || d.Limit != "" {
			t.Errorf("%+v", d)
		}
	})
}

// TestDeviceLost: an XID that a device does not survive ends what is on it, and nothing comes.
func TestDeviceLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := watchedWorker(t, o)
		defer end()
		assign(t, w, o.home("a", mib), o.home("b", mib, asleep))
		after(t, w, time.Second, "a:Resident b:Idle")
		m.happens <- device.NewEvent("GPU-1", time.Now(), 31) // a program's fault, of the GPU that it is a part of
		m.happens <- device.NewEvent("GPU-2", time.Now(), 79) // another one's
		after(t, w, time.Second, "a:Resident b:Idle")
		m.set(func(m *instruments) { m.err = errors.New("busy") })
		after(t, w, 2*time.Second, "a:Resident b:Idle")
		m.happens <- device.NewEvent("GPU-1", time.Now(), 79)
		m.set(func(m *instruments) { m.err = device.ErrGone })
		after(t, w, 0, "a:Refused(DeviceLost) b:Idle")
		after(t, w, time.Minute, "a:Refused(DeviceLost) b:Idle")
		s := w.State()
		if d := s.Devices[0]; d.Health.State != api.DeviceLost || d.Health.Reason != "XID79" || d.Readings != nil || d.UsedBytes != 0 {
			t.Errorf("%+v", d)
		}
		if got := s.Homes[0].Message; !strings.HasPrefix(got, "Device cpu-0 is lost: XID 79: the device has fallen off the bus") {
			t.Error(got)
		}
		for _, name := range []string{"ns/a", "ns/b"} {
			_, _, err := w.Use(t.Context(), name)
			if u, ok := errors.AsType[*UnavailableError](err); !ok || u.Reason != api.ReasonDeviceLost {
				t.Errorf("%s: %v", name, err)
			}
		}
		m.set(func(m *instruments) { m.err = nil }) // it answers again: nobody knows what it computes
		after(t, w, time.Hour, "a:Refused(DeviceLost) b:Refused(DeviceLost)")
	})
}

// twoDevices is a worker with cpu-0 and cpu-1, which are watched as MIG-1 and GPU-2.
func twoDevices(t *testing.T, o *world) (*Worker, *instruments, func()) {
	m := &instruments{reading: device.Reading{Total: 12 * mib}, since: time.Now(), watts: 100, happens: make(chan device.Event)}
	w, end := o.worker(t, func(options *Options) {
		other := options.Devices[0]
		options.Devices[0].UUID, other.Name, other.UUID = "MIG-1", "cpu-1", "GPU-2"
		options.Monitor, options.Devices, options.Drain = m, append(options.Devices, other), time.Minute
	})
	return w, m, end
}

// TestDeviceLostEndsRequests: what runs on a device that is lost ends at once, though it could go on, what loads there does too, and
// whoever waits for that hears of it; and the model may have its home on another device of the worker at once.
func TestDeviceLostEndsRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := twoDevices(t, o)
		defer end()
		a, b := o.home("a", mib), o.home("b", mib, asleep)
		assign(t, w, a, b)
		after(t, w, time.Second, "a:Resident b:Idle")
		l, release, err := w.Use(t.Context(), "ns/a")
		if err != nil {
			t.Fatal(err)
		}
		events, err := l.Engine.Submit(t.Context(), engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: 500}) // 5 s
		if err != nil {
			t.Fatal(err)
		}
		o.loadTime = time.Minute
		waited := make(chan error, 1)
		go func() {
			_, _, err := w.Use(t.Context(), "ns/b")
			waited <- err
		}()
		after(t, w, time.Second, "a:Resident b:Loading")
		m.happens <- device.NewEvent("GPU-1", time.Now(), 79)
		began := time.Now()
		var last engine.Event
		for last = range events {
		}
		lost, ok := errors.AsType[*backend.DeviceError](last.Err)
		if !ok || !lost.Lost || lost.Error() != "device cpu-0 is lost: XID79" || Blamed(last.Err) != api.ReasonDeviceLost || last.Output > 120 {
			t.Errorf("%+v", last)
		}
		if u, ok := errors.AsType[*UnavailableError](<-waited); !ok || u.Reason != api.ReasonDeviceLost {
			t.Errorf("who waited for the load: %v", u)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
		after(t, w, 10*time.Millisecond, "a:Refused(DeviceLost) b:Failed(DeviceLost)") // a step, though the request is not given back yet
		o.loadTime = 100 * time.Millisecond
		a.Devices, b.Devices = []string{"cpu-1"}, []string{"cpu-1"}
		assign(t, w, a, b)
		after(t, w, time.Second, "a:Resident b:Idle")
		release()
		if err := firstToken(t, w, "a"); err != nil {
			t.Error(err)
		}
		if c := w.Counters()["ns/b"]; c.LoadFailures != 0 {
			t.Errorf("the model is blamed: %+v", c)
		}
	})
}

// TestDeviceHangs: neither a model nor the worker waits for ever for a step that a lost device never ends.
func TestDeviceHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := twoDevices(t, o)
		a := o.home("a", mib)
		assign(t, w, a)
		after(t, w, time.Second, "a:Resident")
		o.mu.Lock()
		o.stepTime = time.Hour
		o.mu.Unlock()
		failed := make(chan error, 1)
		go func() { failed <- firstToken(t, w, "a") }()
		time.Sleep(time.Minute)
		m.happens <- device.NewEvent("GPU-1", time.Now(), 79)
		began := time.Now()
		if err := <-failed; Blamed(err) != api.ReasonDeviceLost {
			t.Error(err)
		}
		o.mu.Lock()
		o.stepTime = 10 * time.Millisecond
		o.mu.Unlock()
		a.Devices = []string{"cpu-1"}
		assign(t, w, a)
		after(t, w, 6*time.Second, "a:Resident")
		if err := firstToken(t, w, "a"); err != nil {
			t.Error(err)
		}
		o.mu.Lock()
		o.used = mib // but for what is left to the device
		o.mu.Unlock()
		end()
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
		time.Sleep(2 * time.Hour) // now it ends
	})
}

// TestDeviceHangsAtTheEnd: a worker that ends does not wait for a step of a device that turns out to be lost only then.
func TestDeviceHangsAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := twoDevices(t, o)
		assign(t, w, o.home("a", mib))
		after(t, w, time.Second, "a:Resident")
		o.mu.Lock()
		o.stepTime, o.used = time.Hour, 0 // but for what is left to the device
		o.mu.Unlock()
		failed := make(chan error, 1)
		go func() { failed <- firstToken(t, w, "a") }()
		time.Sleep(time.Minute)
		ended := make(chan bool)
		go func() { end(); close(ended) }()
		time.Sleep(time.Minute)
		m.happens <- device.NewEvent("GPU-1", time.Now(), 79)
		began := time.Now()
		<-ended
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
		if err := <-failed; !errors.Is(err, engine.ErrRemoved) {
			t.Error(err)
		}
		time.Sleep(2 * time.Hour) // now it ends
	})
}

// TestLoadHangs: neither a model nor the worker waits for ever for a load that a lost device never ends. What becomes of it
// later is nobody's.
func TestLoadHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := twoDevices(t, o)
		inner, hang := w.load, make(chan bool)
		w.load = func(ctx context.Context, h api.Home, path string, d *claimed, c api.Context, admitted api.Footprint, progress func(float64)) (*Loaded, error) {
			if d.Name == "cpu-0" {
				<-hang
				ctx = context.WithoutCancel(ctx)
			}
			return inner(ctx, h, path, d, c, admitted, progress)
		}
		a := o.home("a", mib)
		assign(t, w, a)
		after(t, w, time.Minute, "a:Loading")
		m.happens <- device.NewEvent("GPU-1", time.Now(), 79)
		after(t, w, 5500*time.Millisecond, "a:Failed(DeviceLost)")
		a.Devices = []string{"cpu-1"}
		assign(t, w, a)
		after(t, w, time.Second, "a:Resident")
		close(hang)
		after(t, w, time.Second, "a:Resident")
		if o.closed != 1 {
			t.Errorf("what came of the load later was closed %d times", o.closed)
		}
		if err := firstToken(t, w, "a"); err != nil {
			t.Error(err)
		}
		end()
	})
}

// TestLostEndsNoWorker: what a lost device's driver says of it later ends no worker that has another one.
func TestLostEndsNoWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := twoDevices(t, o)
		defer end()
		b := o.home("b", mib)
		b.Devices = []string{"cpu-1"}
		assign(t, w, o.home("a", mib), b)
		after(t, w, time.Second, "a:Resident b:Resident")
		o.mu.Lock()
		o.stepTime, o.stepErr["/m/a"] = 3*time.Second, &backend.DeviceError{Device: "cpu-0", Err: errors.New("unknown error")}
		o.mu.Unlock()
		failed := make(chan error, 1)
		go func() { failed <- firstToken(t, w, "a") }()
		time.Sleep(time.Second)
		m.happens <- device.NewEvent("GPU-1", time.Now(), 79)
		after(t, w, time.Minute, "a:Refused(DeviceLost) b:Resident")
		if err := <-failed; Blamed(err) != api.ReasonDeviceLost {
			t.Error(err)
		}
		if err := firstToken(t, w, "b"); err != nil {
			t.Error(err)
		}
	})
}

// TestClose: the monitor is closed with its worker, which does not wait for a driver that never answers.
func TestClose(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, m, end := watchedWorker(t, newWorld(t))
			time.Sleep(time.Second)
			m.set(func(m *instruments) { m.hangs = hangs })
			began := time.Now()
			end()
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			m.set(func(m *instruments) {
				if m.closed == hangs {
					t.Errorf("hangs %v, closed %v", hangs, m.closed)
				}
				m.hangs = false
			})
			w.State() // which somebody may still ask for
			time.Sleep(time.Minute)
		})
	}
}

// TestSilent: a driver that never answers makes its device degraded, and keeps nobody from anything.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := watchedWorker(t, o)
		defer end()
		assign(t, w, o.home("a", mib))
		after(t, w, time.Second, "a:Resident")
		m.set(func(m *instruments) { m.hangs = true })
		defer m.set(func(m *instruments) { m.hangs = false })
		time.Sleep(40 * time.Second)
		if h := w.State().Devices[0].Health; h.State != api.DeviceDegraded || h.Reason != "Silent" {
			t.Errorf("%+v", h)
		}
		m.set(func(m *instruments) { m.hangs = false })
		time.Sleep(40 * time.Second)
		if h := w.State().Devices[0].Health; h.State != api.DeviceHealthy {
			t.Errorf("%+v", h)
		}
	})
}

// TestUnread: a device that cannot be read for long is degraded as well, and what it said last is not reported for ever.
func TestUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := watchedWorker(t, o)
		defer end()
		time.Sleep(5 * time.Second)
		m.set(func(m *instruments) { m.err = errors.New("no permission") })
		time.Sleep(28 * time.Second)
		if d := w.State().Devices[0]; d.Health.State != api.DeviceHealthy || d.Readings == nil {
			t.Errorf("%+v", d)
		}
		time.Sleep(5 * time.Second)
		if d := w.State().Devices[0]; d.Health.Reason != "Silent" || !strings.Contains(d.Health.Message, "no permission") || d.Readings != nil {
			t.Errorf("%+v", d)
		}
		m.set(func(m *instruments) { m.err = nil })
		time.Sleep(32 * time.Second)
		if d := w.State().Devices[0]; d.Health.State != api.DeviceHealthy || d.Readings == nil {
			t.Errorf("%+v", d)
		}
	})
}

// TestRestless: what strangers hold moves all the time, which is no news while the claim stays.
func TestRestless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := watchedWorker(t, o)
		defer end()
		assign(t, w, o.home("a", 4*mib), o.home("b", 4*mib))
		m.set(func(m *instruments) { m.reading.Others = 3 * mib })
		time.Sleep(20 * time.Second)
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		before := w.State().Devices[0].Limit
		for i := range int64(10) {
			m.set(func(m *instruments) { m.reading.Others = 3*mib + i<<13 })
			time.Sleep(time.Second)
		}
		if now := w.State().Devices[0]; before == "" || now.Limit != before || now.Readings.OthersBytes == 3*mib {
			t.Errorf("%q, then %+v", before, now)
		}
		select {
		case <-changed:
			t.Error("there was news")
		default:
		}
	})
}

// TestRemember: any number of programs' faults, other people's too, and of the same event, leave room for what
// says something of the device.
func TestRemember(t *testing.T) {
	var seen watched
	xid := func(n int) { seen.remember(device.NewEvent("GPU-1", time.Unix(0, 0), n)) }
	xid(79)
	for range 3 {
		for n := range 1000 { // of which 8, 13, 31 and more are programs' faults
			xid(n)
		}
	}
	numbers := map[int]bool{}
	for _, e := range seen.events {
		numbers[e.XID] = true
	}
	if len(seen.events) > mostEvents || len(numbers) != len(seen.events) || !numbers[79] || !numbers[48] || !numbers[999] || numbers[31] {
		t.Errorf("%d: %v", len(seen.events), numbers)
	}
}

func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := watchedWorker(t, o)
		defer end()
		time.Sleep(time.Second)
		m.set(func(m *instruments) { m.err = device.ErrGone })
		time.Sleep(2 * time.Second)
		if h := w.State().Devices[0].Health; h.State != api.DeviceLost || h.Reason != "Gone" {
			t.Errorf("%+v", h)
		}
		m.happens <- device.NewEvent("MIG-1", time.Now(), 79)
		synctest.Wait()
		if h := w.State().Devices[0].Health; h.Reason != "XID79" {
			t.Errorf("%+v", h)
		}
	})
}

// TestMissing: a worker that was to have a device and has none says so, and takes no model.
func TestMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const why = "The container asks for a GPU, and there is none."
		o := newWorld(t)
		w, end := o.worker(t, func(options *Options) {
			options.Devices, options.Missing = []device.Device{{Name: "gpu-0", Kind: "cuda", Extent: 2 << 20, Lost: true, Missing: true}}, why
		})
		defer end()
		a := o.home("a", mib)
		a.Devices = []string{"gpu-0"}
		assign(t, w, a)
		after(t, w, time.Second, "a:Refused(DeviceLost)")
		s := w.State()
		if d := s.Devices[0]; s.Missing != why || !d.Lost() || d.Health.Reason != api.ReasonMissing || d.Health.Message != why || d.Whole() != 0 || s.Homes[0].Message != why {
			t.Errorf("%+v", s)
		}
	})
}

// TestUnlisted: a driver that does not list a device is no proof that it is lost: what runs there goes on, and all is well once
// it is listed again.
func TestUnlisted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := watchedWorker(t, o)
		defer end()
		assign(t, w, o.home("a", mib))
		after(t, w, time.Second, "a:Resident")
		m.set(func(m *instruments) { m.err = fmt.Errorf("device MIG-1: %w", device.ErrUnlisted) })
		time.Sleep(10 * time.Second)
		if h := w.State().Devices[0].Health; h.State != api.DeviceHealthy {
			t.Errorf("%+v", h)
		}
		time.Sleep(time.Hour)
		if h := w.State().Devices[0].Health; h.State != api.DeviceDegraded || h.Reason != "Silent" || !strings.Contains(h.Message, "does not list it") {
			t.Errorf("%+v", h)
		}
		if err := firstToken(t, w, "a"); err != nil {
			t.Error(err)
		}
		m.set(func(m *instruments) { m.err = nil })
		after(t, w, 40*time.Second, "a:Resident")
		if h := w.State().Devices[0].Health; h.State != api.DeviceHealthy {
			t.Errorf("%+v", h)
		}
	})
}

// TestUnknown: a device that the monitor does not know is one that nobody watches.
func TestUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		m := &instruments{err: device.ErrGone, happens: make(chan device.Event)}
		w, end := o.worker(t, func(options *Options) { options.Monitor, options.Devices[0].UUID = m, "GPU-7" })
		defer end()
		assign(t, w, o.home("a", mib))
		after(t, w, 5*time.Second, "a:Resident")
		if d := w.State().Devices[0]; d.Health.State != "" || d.ClaimBytes != 0 {
			t.Errorf("%+v", d)
		}
	})
}

func TestFitness(t *testing.T) {
	healthy, hot, braked, lost := device.Health{Reason: "Healthy"}, device.Health{State: device.Degraded, Reason: "Heat", Message: "at 90 °C"},
		device.Health{State: device.Degraded, Reason: "PowerBrake"}, device.Health{State: device.Lost, Reason: "XID79"}
	hotter := hot
	hotter.Message = "at 91 °C"
	now := time.Unix(0, 0)
	var f fitness
	for i, s := range []struct {
		is    device.Health
		after time.Duration
		want  string // state, reason, message, since when
	}{
		{healthy, time.Second, "Healthy   1"},
		{hot, time.Second, "Degraded Heat at 90 °C 2"},
		{hotter, time.Second, "Degraded Heat at 90 °C 2"},
		{healthy, 29 * time.Second, "Degraded Heat at 90 °C 2"},
		{hotter, time.Second, "Degraded Heat at 90 °C 2"},
		{healthy, 29 * time.Second, "Degraded Heat at 90 °C 2"},
		{braked, time.Second, "Degraded PowerBrake  2"},
		{healthy, time.Second, "Degraded PowerBrake  2"},
		{healthy, 29 * time.Second, "Degraded PowerBrake  2"},
		{healthy, time.Second, "Healthy   94"},
		{lost, time.Second, "Lost XID79  95"},
		{healthy, time.Hour, "Lost XID79  95"},
	} {
		now = now.Add(s.after)
		f = f.see(s.is, now)
		got := fmt.Sprintf("%s %s %s %.0f", f.State, f.Reason, f.Message, f.Since.Sub(time.Unix(0, 0)).Seconds())
		if got != s.want {
			t.Errorf("step %d: %q, want %q", i, got, s.want)
		}
	}
}

// TestEnergy: what the counter says is idle's and the models', these by the time of their steps.
func TestEnergy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, m, end := watchedWorker(t, o)
		defer end()
		assign(t, w, o.home("a", mib), o.home("b", mib))
		after(t, w, 20*time.Second, "a:Resident b:Resident")
		if _, known := w.JoulesPerToken("ns/a"); known {
			t.Error("there were no tokens")
		}
		for name, tokens := range map[string]int{"ns/a": 900, "ns/b": 300} { // 10 ms each, nothing beside it
			l, release, err := w.Use(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			for left := tokens; left > 0; left -= 100 {
				events, err := l.Engine.Submit(t.Context(), engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: 100})
				if err != nil {
					t.Fatal(err)
				}
				for range events {
				}
			}
			release()
		}
		time.Sleep(30 * time.Second)
		s := w.State()
		a, b, r := s.Homes[0], s.Homes[1], s.Devices[0].Readings
		if r == nil || r.EnergyJoules == nil || math.Abs(*r.EnergyJoules-100*s.Time.Sub(m.since).Seconds()) > 101 {
			t.Fatalf("%+v", r)
		}
		if math.Abs(a.EnergyJoules-900) > 30 || math.Abs(b.EnergyJoules-300) > 30 || a.Tokens != 909 || b.Tokens != 303 {
			t.Errorf("%v J of %d tokens, %v J of %d", a.EnergyJoules, a.Tokens, b.EnergyJoules, b.Tokens)
		}
		if per, known := w.JoulesPerToken("ns/b"); !known || math.Abs(per-1) > 0.1 {
			t.Errorf("%v J for a token", per)
		}
		sum := *r.IdleJoules
		for _, e := range w.Energy() {
			sum += e.Joules
		}
		if math.Abs(*r.EnergyJoules-sum) > 0.5 { // each is rounded to 0.1
			t.Errorf("the parts are %v of %v", sum, *r.EnergyJoules)
		}
	})
}

// TestEnergyOfTwo: a model that ends its requests on one device while it is on another already has drawn of the first.
func TestEnergyOfTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, _, end := twoDevices(t, o)
		defer end()
		a := o.home("a", mib)
		assign(t, w, a)
		after(t, w, 10*time.Second, "a:Resident")
		l, release, err := w.Use(t.Context(), "ns/a")
		if err != nil {
			t.Fatal(err)
		}
		events, err := l.Engine.Submit(t.Context(), engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: 500}) // 5 s
		if err != nil {
			t.Fatal(err)
		}
		a.Devices = []string{"cpu-1"}
		assign(t, w, a)
		for range events {
		}
		release()
		after(t, w, 10*time.Second, "a:Resident")
		drawn := map[string]float64{}
		for _, e := range w.Energy() {
			drawn[e.Device] += e.Joules
		}
		if math.Abs(drawn["cpu-0"]-500) > 10 || drawn["cpu-1"] != 0 {
			t.Errorf("%v", drawn)
		}
		if s := w.State().Homes[0]; math.Abs(s.EnergyJoules-500) > 10 || s.Tokens != 501 {
			t.Errorf("%+v", s)
		}
	})
}

// TestUnwatched: that nobody watches a GPU is reported; a processor has no instruments.
func TestUnwatched(t *testing.T) {
	w := &Worker{}
	for kind, want := range map[string]bool{"cpu": false, "cuda": true} {
		if d := w.deviceState(&claimed{Device: device.Device{Name: "d", Kind: kind}}, 0); d.Unwatched != want || d.MIG {
			t.Errorf("%+v", d)
		}
	}
}
