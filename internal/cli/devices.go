package cli

import (
	"errors"
	"log/slog"

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
// bytes models hold of the device with a UUID.
func (o workerOptions) devices(claim device.Options, held device.Held, log *slog.Logger) ([]device.Device, device.Monitor, error) {
	if o.emulate == "" {
		which, err := named.Resolve(o.device, log)
		if err != nil {
			return nil, nil, err
		}
		return named.Claim(which, claim, held, log)
	}
	m, err := device.Emulated(o.emulate, held, log)
	if err != nil {
		return nil, nil, err
	}
	all, err := device.Claim(m, "cuda", 0, device.Options{Memory: claim.Expected, Headroom: claim.Headroom})
	return all, m, err
}
