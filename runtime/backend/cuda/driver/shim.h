// What gorgonia.org/cu lacks. Each function that needs a context makes it the calling thread's, so that goroutines may
// call from any thread. A context is named with the number of its opening: the same pointer may come again.
#ifndef ESTIBA_SHIM_H
#define ESTIBA_SHIM_H

#include <cuda.h>

// estiba_cuda_failure opens the driver. It is NULL, or says why the driver cannot be used.
const char *estiba_cuda_failure(void);

const char *estiba_error_name(CUresult r);
CUresult estiba_device_id(CUdevice device, CUuuid *uuid, char *pci, int pciSize);

typedef struct {
	CUcontext context;
	uint64_t opening;
} estiba_context;

CUresult estiba_enter(estiba_context c);

CUresult estiba_module_load(estiba_context c, CUmodule *module, const void *image, char *log, size_t logSize);
CUresult estiba_allow_shared(estiba_context c, CUfunction f, int most);
CUresult estiba_pin(estiba_context c, void *p, size_t n, CUdeviceptr *at);
CUresult estiba_unpin(estiba_context c, void *p);

// A launch as it is staged: this, then its parameters, then the next at a multiple of 16 bytes.
typedef struct {
	CUfunction function;
	uint32_t grid[3], threads, shared, stride; // stride: bytes to the next
	uint32_t early; // it may start before what is queued before it has ended
	size_t size; // of the parameters
} estiba_launch;

// estiba_launch_all launches n staged launches; *launched is how many went through.
CUresult estiba_launch_all(estiba_context c, CUstream s, const void *staged, int n, int *launched);

CUresult estiba_begin_capture(estiba_context c, CUstream s);
CUresult estiba_end_capture(estiba_context c, CUstream s, CUgraph *graph);
CUresult estiba_instantiate(estiba_context c, CUgraph graph, CUstream s, CUgraphExec *exec);
CUresult estiba_graph_destroy(estiba_context c, CUgraph graph);
CUresult estiba_run(estiba_context c, CUgraphExec exec, CUstream s);
CUresult estiba_exec_destroy(estiba_context c, CUgraphExec exec);

CUresult estiba_granularity(estiba_context c, int device, size_t *granularity);
CUresult estiba_reserve(estiba_context c, CUdeviceptr *at, size_t size);
CUresult estiba_unreserve(estiba_context c, CUdeviceptr at, size_t size);
CUresult estiba_create(estiba_context c, int device, size_t size, uint64_t *handles, int n, int *made);
CUresult estiba_map(estiba_context c, int device, CUdeviceptr at, size_t size, const uint64_t *handles, int n);
CUresult estiba_unmap(estiba_context c, CUdeviceptr at, size_t size, int n);
CUresult estiba_release(estiba_context c, const uint64_t *handles, int n);

#endif
