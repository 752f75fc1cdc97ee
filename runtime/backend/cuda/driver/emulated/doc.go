// Package emulated changes the emulated driver (kernels/cuda/emulator/libcuda.cpp) while a test runs. It needs the
// build tag cuda and cgo.
package emulated
