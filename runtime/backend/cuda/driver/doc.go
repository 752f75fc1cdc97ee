// Package driver talks to the CUDA driver: devices, their primary contexts, modules, streams, events, graphs,
// pinned host memory and virtual device memory. It needs the build tag cuda and cgo; start at Devices and Open.
//
// Devices, contexts, modules, functions, streams, events and copies go through gorgonia.org/cu, what that lacks
// through shim.c. Both call the driver by trampoline.c, which opens libcuda.so.1 when it is first needed: a
// program with this package starts where there is none.
package driver
