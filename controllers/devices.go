package controllers

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/status"
)

// What workers measure of their devices, and what follows from it. Memory that other processes
// take is not packed: workers report it off their capacity. A degraded device gets homes only where
// no other has room. A lost one gets none, and what is at home there gets another home, at once: it
// cannot be asked to serve until the other one is ready. A worker of which nothing is left goes,
// so that another pod gets other devices.

const (
	// devicesLost is why a worker goes of which no device is left.
	devicesLost = "all of its devices are lost"
	// lostAgain is how long a worker stays whose devices were lost from the start: the next
	// pod may get the same ones.
	lostAgain = 5 * time.Minute
)

// ailing says in a word what is the matter with a degraded device; empty: it is in order, or lost.
func ailing(d *worker.Device) string {
	if d.Health.State != worker.DeviceDegraded {
		return ""
	}
	return cmp.Or(d.Health.Reason, "Degraded")
}

// outside is what other processes take of what models might use, in bytes.
func outside(d *worker.Device) int64 { return d.Whole() - d.CapacityBytes }

// kept: other processes keep m off a device that would hold it without them.
func (m *model) kept() bool {
	for _, p := range m.pools {
		for _, s := range p.stations {
			if s.Report != nil && s.usable && slices.ContainsFunc(s.Report.Devices, func(at worker.Device) bool {
				return outside(&at) > 0 && !at.Lost() && likely(known(m), p.key) <= at.Whole()
			}) {
				return true
			}
		}
	}
	return false
}

// crippled: all devices of s are lost, so that it can serve nothing.
func (s *station) crippled() bool {
	return s.Report != nil && len(s.Report.Devices) > 0 && !slices.ContainsFunc(s.Report.Devices, func(at worker.Device) bool { return !at.Lost() })
}

// crippled says why all workers of p are, where it has some; empty: one has a device left, or nobody knows.
func (d *decision) crippled(p *pool) (why string) {
	for _, s := range p.present(d.seen.Now) {
		if !s.crippled() {
			return ""
		}
		_, why = s.cripple()
	}
	return why
}

// cripple is why, of one that is: a reason and a sentence.
func (s *station) cripple() (reason, message string) {
	if s.Report.Missing != "" {
		return v1alpha1.ReasonDeviceMissing, s.lacks()
	}
	return v1alpha1.ReasonDeviceLost, fmt.Sprintf("All devices of worker %s are lost: %s", s.Name, complaint(&s.Report.Devices[0]))
}

// lacks says what s was to be given and was not.
func (s *station) lacks() string {
	return fmt.Sprintf("Worker %s has no GPU: %s", s.Name, sentence(s.Report.Missing))
}

// device is one of s as it last reported it; nil: it has none of that name.
func (s *station) device(name string) *worker.Device {
	if s.Report == nil {
		return nil
	}
	for i := range s.Report.Devices {
		if d := &s.Report.Devices[i]; d.Name == name {
			return d
		}
	}
	return nil
}

// losing: one of the devices is lost, or the worker has come back without it, so that nothing that has its home
// there can serve.
func (s *station) losing(devices []string) bool {
	return s.Report != nil && slices.ContainsFunc(devices, func(name string) bool { d := s.device(name); return d == nil || d.Lost() })
}

// abandon lets workers go of which no device is left.
func (d *decision) abandon(p *pool) {
	if p.barred() != "" { // none would come in its place
		return
	}
	for _, s := range p.stations {
		r := s.Report
		if r == nil || s.silent || s.Failed || !s.Deleting.IsZero() || s.memory.Going != "" || len(r.Devices) == 0 {
			continue
		}
		since, left := time.Time{}, false
		for i := range r.Devices {
			left = left || !r.Devices[i].Lost()
			if at := r.Devices[i].Health.Since; at.After(since) {
				since = at
			}
		}
		if until := since.Add(lostAgain); left {
			s.memory.Fit = true
			continue
		} else if !s.memory.Fit && d.seen.Now.Before(until) {
			d.soon(until)
			continue
		}
		s.memory.Going = devicesLost
		d.soon(d.seen.Now)
	}
}

// strand drops the homes on devices that are lost.
func (d *decision) strand() {
	for _, m := range d.models {
		for _, h := range slices.Clone(m.homes) {
			if h.station.losing(h.devices) {
				d.drop(h)
			}
		}
	}
}

// mostAilments is how many devices a sentence names.
const mostAilments = 3

// ails says what of m's pools other processes take, and which of their devices are lost.
func (d *decision) ails(m *model) string {
	var all []string
	for _, p := range m.pools {
		for _, s := range p.present(d.seen.Now) {
			if s.Report == nil {
				continue
			}
			for i := range s.Report.Devices {
				at := &s.Report.Devices[i]
				switch n := outside(at); {
				case at.Health.Reason == worker.ReasonMissing:
					all = append(all, " "+s.lacks())
				case at.Lost():
					all = append(all, fmt.Sprintf(" %s/%s is lost (%s).", s.Name, at.Name, cmp.Or(at.Health.Reason, "it does not say why")))
				case n > 0:
					all = append(all, fmt.Sprintf(" Other processes take %s of %s/%s.", packing.Size(n), s.Name, at.Name))
				}
			}
		}
	}
	more := ""
	if n := len(all) - mostAilments; n > 0 {
		more = fmt.Sprintf(" So it is with %s more.", count(n, "device"))
	}
	return strings.Join(all[:min(len(all), mostAilments)], "") + more
}

// degradation is the pool's condition Degraded; nil: it has none, and never had.
func (d *decision) degradation(p *pool) *status.Part {
	var lost, missing, poor []string
	reports := 0
	for _, s := range p.present(d.seen.Now) {
		if s.Report == nil {
			continue
		}
		reports++
		if s.Report.Missing != "" {
			missing = append(missing, s.lacks())
		}
		for i := range s.Report.Devices {
			at := &s.Report.Devices[i]
			if at.Health.Reason == worker.ReasonMissing {
				continue
			}
			say := fmt.Sprintf("Device %s of worker %s is", at.Name, s.Name)
			switch at.Health.State {
			case worker.DeviceLost:
				lost = append(lost, fmt.Sprintf("%s lost: %s", say, complaint(at)))
			case worker.DeviceDegraded:
				poor = append(poor, fmt.Sprintf("%s degraded: %s", say, complaint(at)))
			}
		}
	}
	all := slices.Concat(lost, missing, poor)
	more := ""
	if n := len(all) - mostAilments; n > 0 {
		more = fmt.Sprintf(" So are %d more.", n)
	}
	message := strings.Join(all[:min(len(all), mostAilments)], " ") + more
	was := status.Find(p.Status.Conditions, v1alpha1.ConditionDegraded)
	switch {
	case len(lost) > 0:
		return &status.Part{True: true, Reason: v1alpha1.ReasonDeviceLost, Message: message}
	case len(missing) > 0:
		return &status.Part{True: true, Reason: v1alpha1.ReasonDeviceMissing, Message: message}
	case len(poor) > 0:
		return &status.Part{True: true, Reason: v1alpha1.ReasonDeviceDegraded, Message: message}
	case was != nil && was.Status == metav1.ConditionTrue && reports == 0 && d.expects(p):
		return &status.Part{True: true, Reason: was.Reason, Message: was.Message} // until the worker that comes next says otherwise
	case was != nil:
		return &status.Part{Reason: v1alpha1.ReasonSucceeded}
	}
	return nil
}

// expects: p is to have a worker, which may be another one than it had.
func (d *decision) expects(p *pool) bool {
	return p.Spec.Workers.Min > 0 || len(p.present(d.seen.Now)) > 0 || d.plan.Create[p.key] > 0 || p.Blocked != ""
}

// complaint is what a device says is the matter with it.
func complaint(at *worker.Device) string {
	return sentence(cmp.Or(at.Health.Message, at.Health.Reason, "it does not say why"))
}

// mostAccelerators bounds a pool's status.
const mostAccelerators = 64

// accelerators are the pool's devices with figures of their own. They are in the status for people, so
// what moves a little stays as it was: /metrics follow it.
func (d *decision) accelerators(p *pool) []v1alpha1.AcceleratorStatus {
	before := map[string]v1alpha1.AcceleratorStatus{}
	for _, a := range p.Status.Accelerators {
		before[a.Worker+"/"+a.Device] = a
	}
	var all []v1alpha1.AcceleratorStatus
	for _, s := range p.present(d.seen.Now) {
		if s.Report == nil {
			continue
		}
		for i := range s.Report.Devices {
			at := &s.Report.Devices[i]
			if at.Health.State == "" && at.Readings == nil {
				continue
			}
			a := v1alpha1.AcceleratorStatus{
				Worker: s.Name, Device: at.Name, Capacity: quantity(at.CapacityBytes), Allocated: quantity(at.UsedBytes),
				State: string(cmp.Or(at.Health.State, worker.DeviceHealthy)), Reason: at.Health.Reason,
			}
			if !at.Health.Since.IsZero() {
				a.Since = &metav1.Time{Time: at.Health.Since.Truncate(time.Second)}
			}
			if r := at.Readings; r != nil {
				a.Memory, a.Others = pointer(quantity(r.TotalBytes)), pointer(quantity(r.OthersBytes))
				was, known := before[s.Name+"/"+at.Name]
				if known && was.Others != nil && abs(was.Others.Value()-r.OthersBytes) < r.TotalBytes/64 {
					a.Others = was.Others
				}
				a.Utilization = steady(was.Utilization, r.Utilization, 100, func(int32) int32 { return 10 })
				a.Power = steady(was.Power, r.PowerWatts, 1, func(was int32) int32 { return was/10 + 5 })
			}
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b v1alpha1.AcceleratorStatus) int {
		return cmp.Or(cmp.Compare(a.Worker, b.Worker), cmp.Compare(a.Device, b.Device))
	})
	return all
}

// steady is a figure as it was, unless it is now further from that than slack of it.
func steady(was *int32, now *float64, unit float64, slack func(was int32) int32) *int32 {
	if now == nil {
		return nil
	}
	is := int32(math.Round(min(max(*now*unit, 0), math.MaxInt32)))
	if was != nil && abs(int64(*was)-int64(is)) < int64(slack(*was)) {
		return was
	}
	return &is
}

func abs(n int64) int64 { return max(n, -n) }

func pointer(q resource.Quantity) *resource.Quantity { return &q }

// drawn sums up what a pool's devices tell, for `kubectl get`: their mean utilization, and their power.
func drawn(all []v1alpha1.AcceleratorStatus) (utilization, power string) {
	busy, n, watts, powered := 0, 0, 0, false
	for _, a := range all {
		if a.Utilization != nil {
			busy, n = busy+int(*a.Utilization), n+1
		}
		if a.Power != nil {
			watts, powered = watts+int(*a.Power), true
		}
	}
	if n > 0 {
		utilization = fmt.Sprintf("%d%%", (busy+n/2)/n)
	}
	if powered {
		power = fmt.Sprintf("%dW", watts)
	}
	return utilization, power
}
