//go:build cuda && cgo

package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	kernels "github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend/cuda/driver"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/residency"
)

const (
	laneBytes  = 4 << 20 // of what is on its way from a file to a device at once
	lanes      = 16      // of the process: two of each mover's, of which one is read into
	passBytes  = 4 << 20 // of a device: what steps take in and give out passes through it
	drawsBytes = 64 << 10
	smallLanes = 2 // of a device of less than smallDevice, with pieces of smallPiece
	smallPiece = 2 << 20
)

// smallDevice has no room for lanes of full size.
const smallDevice = 4 << 30

// host is the pinned memory of the process: one piece, allocated when the first backend is made and given back with
// the last. Lanes are of the process, whose disk and memory they keep busy; each device has a pass of its own.
var host struct {
	sync.Mutex
	users   int
	context *driver.Context // of its own, since devices may be closed in any order
	pinned  *driver.Pinned
	lanes   chan []byte
	passes  []pass // free ones
}

// pass is pinned memory of a device, and where its kernels find that. What steps take in they read there by themselves: the
// engine that copies to the device may have a load's pieces before it, for as long as that lasts.
type pass struct {
	bytes []byte
	at    kernels.Address
}

// cut the first n bytes off.
func (p *pass) cut(n int) (first pass) {
	first.bytes, p.bytes = p.bytes[:n:n], p.bytes[n:]
	first.at, p.at = p.at, p.at+kernels.Address(n)
	return first
}

// movers is how many goroutines read for a load.
func movers() int { return min(max(runtime.GOMAXPROCS(0)/2, 2), 8) }

// lanesOf a device with so much memory, and how many bytes pass on one at once.
func lanesOf(memory int64) (n, piece int) {
	if memory < smallDevice {
		return smallLanes, smallPiece
	}
	return lanes, laneBytes
}

// hostBytes of pinned memory for so many devices.
func hostBytes(devices int) int { return lanes*laneBytes + devices*passBytes }

// enterHost gives a pass of pinned memory, and the lanes. leaveHost ends their use.
func enterHost(c *driver.Context) (own pass, all chan []byte, err error) {
	host.Lock()
	defer host.Unlock()
	if host.users == 0 {
		devices, err := driver.Devices()
		if err != nil {
			return pass{}, nil, err
		}
		n := hostBytes(len(devices))
		if limit, ok := device.HostLimit(nil); ok && int64(n) > device.Room(limit) {
			return pass{}, nil, fmt.Errorf("pinned memory for loads takes %s, and this process may have %s in all: give the container a memory limit of at least %s",
				residency.Bytes(int64(n)), residency.Bytes(limit), residency.Bytes(2*int64(n)))
		}
		c, err := driver.Open(c.Info().Ordinal)
		if err != nil {
			return pass{}, nil, err
		}
		p, err := c.Pin(n)
		if err != nil {
			return pass{}, nil, errors.Join(fmt.Errorf("pin %s of memory for loads: %w", residency.Bytes(int64(n)), err), c.Close())
		}
		host.context, host.pinned = c, p
		rest := pass{p.Bytes, p.At}
		host.lanes, host.passes = make(chan []byte, lanes), nil
		for range lanes {
			host.lanes <- rest.cut(laneBytes).bytes
		}
		for range devices {
			host.passes = append(host.passes, rest.cut(passBytes))
		}
	}
	last := len(host.passes) - 1
	if last < 0 {
		return pass{}, nil, errors.New("each device has one backend, and one is there already")
	}
	own = host.passes[last]
	host.passes = host.passes[:last]
	host.users++
	return own, host.lanes, nil
}

func leaveHost(own pass) error {
	host.Lock()
	defer host.Unlock()
	host.passes = append(host.passes, own)
	if host.users--; host.users > 0 {
		return nil
	}
	p, c := host.pinned, host.context
	host.context, host.pinned, host.lanes, host.passes = nil, nil, nil, nil
	err := errors.Join(p.Close(), c.Close())
	if e, ok := errors.AsType[*driver.Error](err); ok && e.Sticky() {
		return nil // the device that it was pinned by has failed, which may be another one than that of who leaves
	}
	return err
}
