package cli

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/estiba/estiba/runtime/backend/cuda"
	"github.com/estiba/estiba/runtime/backend/named"
	"github.com/estiba/estiba/runtime/device"
)

// emulateHelp is that of --emulate.
const emulateHelp = "file that describes GPUs which are not there (memory, other processes, power, heat, XIDs; read again when it changes): " +
	"to try how models are packed on them; the processor computes"

// checkClaim says what is wrong with what a worker is to compute on.
func checkClaim(device, emulate string) error {
	if err := named.CheckClaim(device); err != nil {
		return usageError{err}
	}
	if emulate != "" && device == named.CUDA {
		return usageError{errors.New("--device is cuda, and for the GPUs of --emulate the processor computes: leave out one of them")}
	}
	return nil
}

// devices are those of the worker, and who watches them: nobody, if that is nil. held is how many
// bytes models hold of the device with a UUID. missing says that the worker was to have a GPU and has none, and what to do.
func (o workerOptions) devices(claim device.Options, held device.Held, log *slog.Logger) (all []device.Device, m device.Monitor, missing string, err error) {
	if o.emulate != "" {
		emulated, err := device.Emulated(o.emulate, held, log)
		if err != nil {
			return nil, nil, "", err
		}
		all, err := device.Claim(emulated, cuda.Kind, 0, device.Options{Memory: claim.Expected, Headroom: claim.Headroom})
		return all, emulated, "", err
	}
	asked := o.device
	if o.expects != "" && asked == named.Auto {
		asked = named.CUDA
	}
	which, err := named.Resolve(asked, log)
	switch {
	case err == nil:
	case o.expects == "" || !errors.Is(err, cuda.ErrNone):
		return nil, nil, "", named.Insisted(err)
	case errors.Is(err, cuda.ErrBuild) && o.device == named.Auto: // who gives it this program has chosen the processor, knowingly or not
		missing = fmt.Sprintf("The container asks for a GPU (%s), and this program is built without CUDA: the processor computes. "+
			"Give workers the image for GPUs (the chart's workerImage), or ask for none in the pool's template.", o.expects)
		which = named.Processor
	default:
		missing = fmt.Sprintf("The container asks for a GPU (%s), and there is none to be had: %v. Nothing is computed. "+
			"See that the node's container runtime gives its driver to pods; or let the processor compute, with the variable ESTIBA_DEVICE=cpu in the pool's template.", o.expects, err)
		log.Error("GPU missing", "message", missing)
		return []device.Device{cuda.Missing()}, nil, missing, nil
	}
	if missing != "" {
		log.Warn("GPU missing", "message", missing)
	}
	all, m, err = named.Claim(which, claim, held, log)
	return all, m, missing, err
}
