//go:build cuda && cgo

package driver

// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"reflect"
)

// ErrNoDriver means that no device can be used: libcuda.so.1 is not there or does not work, or finds none.
var ErrNoDriver = errors.New("no CUDA device")

// Error is a call of the driver that failed.
type Error struct {
	Op   string
	Code int
	Name string // CUDA_ERROR_…
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s (%d)", e.Op, e.Name, e.Code) }

// OutOfMemory says that the device had too little memory left; nothing else is wrong.
func (e *Error) OutOfMemory() bool { return e.Code == C.CUDA_ERROR_OUT_OF_MEMORY }

// Refused says that the driver takes no image like this one: it knows no such machine code, or none that is so new.
func (e *Error) Refused() bool {
	switch e.Code {
	case C.CUDA_ERROR_INVALID_IMAGE, C.CUDA_ERROR_NO_BINARY_FOR_GPU, C.CUDA_ERROR_UNSUPPORTED_PTX_VERSION, C.CUDA_ERROR_INVALID_SOURCE:
		return true
	}
	return false
}

// Sticky says that the context is dead: every call that follows fails as this one did, and only a new process
// has a working context again.
func (e *Error) Sticky() bool {
	switch e.Code {
	case C.CUDA_ERROR_ILLEGAL_ADDRESS, C.CUDA_ERROR_LAUNCH_TIMEOUT, C.CUDA_ERROR_CONTEXT_IS_DESTROYED, C.CUDA_ERROR_ASSERT, C.CUDA_ERROR_HARDWARE_STACK_ERROR,
		C.CUDA_ERROR_ILLEGAL_INSTRUCTION, C.CUDA_ERROR_MISALIGNED_ADDRESS, C.CUDA_ERROR_INVALID_ADDRESS_SPACE, C.CUDA_ERROR_INVALID_PC,
		C.CUDA_ERROR_LAUNCH_FAILED, C.CUDA_ERROR_CONTAINED, C.CUDA_ERROR_DEINITIALIZED:
		return true
	}
	return e.Lost()
}

// Lost says that the device itself is sick or gone: it may well fail in a new process too.
func (e *Error) Lost() bool {
	switch e.Code {
	case C.CUDA_ERROR_DEVICE_UNAVAILABLE, C.CUDA_ERROR_NO_DEVICE, C.CUDA_ERROR_INVALID_DEVICE, C.CUDA_ERROR_ECC_UNCORRECTABLE, C.CUDA_ERROR_NVLINK_UNCORRECTABLE,
		C.CUDA_ERROR_UNKNOWN:
		return true
	}
	return false
}

// failed is the error of op, nil where there is none.
func failed(op string, r C.CUresult) error {
	if r == C.CUDA_SUCCESS {
		return nil
	}
	return &Error{Op: op, Code: int(r), Name: C.GoString(C.estiba_error_name(r))}
}

// wrapped is failed for an error of gorgonia.org/cu: its type is not exported, but it is the driver's number.
func wrapped(op string, err error) error {
	if err == nil {
		return nil
	}
	if v := reflect.ValueOf(err); v.CanInt() {
		return failed(op, C.CUresult(v.Int()))
	}
	return fmt.Errorf("%s: %w", op, err)
}
