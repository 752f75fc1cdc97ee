//go:build cuda && cgo

#include "shim.h"

const char *estiba_error_name(CUresult r) {
	const char *name = NULL;
	return cuGetErrorName(r, &name) == CUDA_SUCCESS && name ? name : "CUDA_ERROR_UNKNOWN_CODE";
}

CUresult estiba_device_id(CUdevice device, CUuuid *uuid, char *pci, int pciSize) {
	CUresult r = cuDeviceGetUuid_v2(uuid, device);
	if (r == CUDA_ERROR_NOT_FOUND) r = cuDeviceGetUuid(uuid, device); // before 11.4
	return r == CUDA_SUCCESS ? cuDeviceGetPCIBusId(pci, pciSize, device) : r;
}

CUresult estiba_enter(estiba_context c) {
	static __thread uint64_t current __attribute__((tls_model("initial-exec"))); // the general model would need more than libc
	if (current == c.opening) return CUDA_SUCCESS;
	CUresult r = cuCtxSetCurrent(c.context);
	if (r == CUDA_SUCCESS) current = c.opening;
	return r;
}

#define ENTER(c) do { CUresult r = estiba_enter(c); if (r != CUDA_SUCCESS) return r; } while (0)

CUresult estiba_module_load(estiba_context c, CUmodule *module, const void *image, char *log, size_t logSize) {
	ENTER(c);
	CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
	void *values[] = {log, (void *)logSize};
	return cuModuleLoadDataEx(module, image, 2, options, values);
}

CUresult estiba_allow_shared(estiba_context c, CUfunction f, int most) {
	ENTER(c);
	int fixed = 0;
	CUresult r = cuFuncGetAttribute(&fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, f);
	return r == CUDA_SUCCESS ? cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most - fixed) : r;
}

CUresult estiba_pin(estiba_context c, void *p, size_t n, CUdeviceptr *at) {
	ENTER(c);
	CUresult r = cuMemHostRegister(p, n, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
	if (r != CUDA_SUCCESS) return r;
	r = cuMemHostGetDevicePointer(at, p, 0);
	if (r != CUDA_SUCCESS) cuMemHostUnregister(p);
	return r;
}

CUresult estiba_unpin(estiba_context c, void *p) {
	ENTER(c);
	return cuMemHostUnregister(p);
}

CUresult estiba_launch_all(estiba_context c, CUstream s, const void *staged, int n, int *launched) {
	*launched = 0;
	ENTER(c);
	for (const char *p = staged; *launched < n; ++*launched) {
		const estiba_launch *l = (const estiba_launch *)p;
		size_t size = l->size;
		void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, (void *)(l + 1), CU_LAUNCH_PARAM_BUFFER_SIZE, &size, CU_LAUNCH_PARAM_END};
		CUresult r;
		if (l->early) {
			CUlaunchAttribute a = {.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, .value.programmaticStreamSerializationAllowed = 1};
			CUlaunchConfig config = {l->grid[0], l->grid[1], l->grid[2], l->threads, 1, 1, l->shared, s, &a, 1};
			r = cuLaunchKernelEx(&config, l->function, NULL, extra);
		} else {
			r = cuLaunchKernel(l->function, l->grid[0], l->grid[1], l->grid[2], l->threads, 1, 1, l->shared, s, NULL, extra);
		}
		if (r != CUDA_SUCCESS) return r;
		p += l->stride;
	}
	return CUDA_SUCCESS;
}

// Relaxed, since the goroutine that records may go on in another thread, and since other goroutines go on with what a
// stricter mode forbids: mapping memory for another model, say.
CUresult estiba_begin_capture(estiba_context c, CUstream s) {
	ENTER(c);
	return cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED);
}

CUresult estiba_end_capture(estiba_context c, CUstream s, CUgraph *graph) {
	ENTER(c);
	return cuStreamEndCapture(s, graph);
}

CUresult estiba_instantiate(estiba_context c, CUgraph graph, CUstream s, CUgraphExec *exec) {
	ENTER(c);
	CUresult r = cuGraphInstantiateWithFlags(exec, graph, 0);
	if (r != CUDA_SUCCESS) return r;
	r = cuGraphUpload(*exec, s); // now, so that the first launch is as fast as the others
	if (r != CUDA_SUCCESS) cuGraphExecDestroy(*exec);
	return r;
}

CUresult estiba_graph_destroy(estiba_context c, CUgraph graph) {
	ENTER(c);
	return cuGraphDestroy(graph);
}

CUresult estiba_run(estiba_context c, CUgraphExec exec, CUstream s) {
	ENTER(c);
	return cuGraphLaunch(exec, s);
}

CUresult estiba_exec_destroy(estiba_context c, CUgraphExec exec) {
	ENTER(c);
	return cuGraphExecDestroy(exec);
}

static CUmemAllocationProp onDevice(int device) {
	CUmemAllocationProp p = {0};
	p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
	p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
	p.location.id = device;
	return p;
}

CUresult estiba_granularity(estiba_context c, int device, size_t *granularity) {
	ENTER(c);
	CUmemAllocationProp p = onDevice(device);
	return cuMemGetAllocationGranularity(granularity, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
}

CUresult estiba_reserve(estiba_context c, CUdeviceptr *at, size_t size) {
	ENTER(c);
	return cuMemAddressReserve(at, size, 0, 0, 0);
}

CUresult estiba_unreserve(estiba_context c, CUdeviceptr at, size_t size) {
	ENTER(c);
	return cuMemAddressFree(at, size);
}

CUresult estiba_create(estiba_context c, int device, size_t size, uint64_t *handles, int n, int *made) {
	*made = 0;
	ENTER(c);
	CUmemAllocationProp p = onDevice(device);
	for (; *made < n; ++*made) {
		CUmemGenericAllocationHandle h = 0;
		CUresult r = cuMemCreate(&h, size, &p, 0);
		if (r != CUDA_SUCCESS) return r;
		handles[*made] = h;
	}
	return CUDA_SUCCESS;
}

CUresult estiba_map(estiba_context c, int device, CUdeviceptr at, size_t size, const uint64_t *handles, int n) {
	ENTER(c);
	for (int i = 0; i < n; i++) {
		CUresult r = cuMemMap(at + i * size, size, 0, handles[i], 0);
		if (r != CUDA_SUCCESS) {
			while (i-- > 0) cuMemUnmap(at + i * size, size);
			return r;
		}
	}
	CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, device}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUresult r = cuMemSetAccess(at, size * n, &access, 1);
	if (r != CUDA_SUCCESS) {
		for (int i = 0; i < n; i++) cuMemUnmap(at + i * size, size);
	}
	return r;
}

CUresult estiba_unmap(estiba_context c, CUdeviceptr at, size_t size, int n) {
	ENTER(c);
	for (int i = 0; i < n; i++) {
		CUresult r = cuMemUnmap(at + i * size, size);
		if (r != CUDA_SUCCESS) return r;
	}
	return CUDA_SUCCESS;
}

CUresult estiba_release(estiba_context c, const uint64_t *handles, int n) {
	ENTER(c);
	CUresult first = CUDA_SUCCESS;
	for (int i = 0; i < n; i++) {
		CUresult r = cuMemRelease(handles[i]);
		if (first == CUDA_SUCCESS) first = r;
	}
	return first;
}
