package device

import (
	"errors"
	"fmt"

	"github.com/estiba/estiba/runtime/residency"
)

// Claim is what models may use of each of a monitor's devices: gpu-0, gpu-1 and so on, in the order
// of Devices, without GPUs whose MIG instances are devices of their own. overhead is what the process needs
// on a device beside models, in bytes; a quarter of a small one at most. What strangers hold at this time is
// not claimed. Of o, Memory bounds what is claimed of each device, Expected is ignored.
//
// One that does not answer is Lost, and nothing keeps the others from being used. The error names a device that has no
// room or cannot be read; it is ErrNoDevice if there is none.
func Claim(m Monitor, kind string, overhead int64, o Options) ([]Device, error) {
	units, err := m.Devices()
	if err != nil {
		return nil, err
	}
	var claimed []Device
	for _, u := range units {
		if u.Split {
			continue
		}
		r, err := m.Read(u.UUID)
		lost := errors.Is(err, ErrGone)
		if lost {
			r = Reading{Total: u.Total}
		} else if err != nil {
			return nil, fmt.Errorf("read device %s (%s): %w", u.UUID, u.Name, err)
		}
		claim, why := r.Room(0, min(overhead, r.Total/4))
		bounded := o.Memory > 0 && o.Memory < claim
		if bounded {
			claim, why = o.Memory, residency.Bytes(o.Memory)+" as asked for"
		}
		extent := int64(smallExtent)
		if claim >= largeDevice {
			extent = largeExtent
		}
		claim -= claim / 100 * int64(o.Headroom)
		d := Device{
			Name: fmt.Sprintf("gpu-%d", len(claimed)), Kind: kind, UUID: u.UUID, Extent: extent, Capacity: claim / extent * extent,
			Description: fmt.Sprintf("%s, %s, %d %% headroom", u.Name, why, o.Headroom),
		}
		if lost {
			d.Lost, d.Description = true, u.Name+", which does not answer"
		} else if d.Capacity == 0 && bounded {
			return nil, fmt.Errorf("device %s (%s): %s, which is what models may use of it, leaves no room for one; raise --memory, or spec.device.memory of the pool", u.UUID, u.Name, residency.Bytes(o.Memory))
		} else if d.Capacity == 0 {
			return nil, fmt.Errorf("device %s (%s) has no room for a model: %s; end what others run there, or give this process another device", u.UUID, u.Name, why)
		}
		claimed = append(claimed, d)
	}
	if len(claimed) == 0 {
		return nil, ErrNoDevice
	}
	return claimed, nil
}

// ErrNoDevice says that a monitor has no device on which models can be loaded.
var ErrNoDevice = errors.New("no device is given to this process, or all are split without a MIG instance")
