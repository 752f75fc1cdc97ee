//go:build cuda && cgo

// The driver's functions, as this program links them: each jumps to what libcuda.so.1 has under its name, if that
// library is here, so that the program needs it neither to be built nor to start. The library is opened and
// initialized when the first of them is called, but for cuInit: gorgonia.org/cu calls it before main and
// ends the process where it fails.
//
// Hidden, since the driver must go on finding its own functions by these names in a program that exports its symbols.
// In NVIDIA's place, -lcuda is given lib/libcuda.a, which is empty.

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include "shim.h"

#define FUNCTIONS(F) \
	F(cuArray3DCreate_v2) F(cuArray3DGetDescriptor_v2) F(cuArrayCreate_v2) F(cuArrayDestroy) F(cuArrayGetDescriptor_v2) F(cuCtxCreate_v2) \
	F(cuCtxDestroy_v2) F(cuCtxDisablePeerAccess) F(cuCtxEnablePeerAccess) F(cuCtxGetApiVersion) F(cuCtxGetCacheConfig) F(cuCtxGetCurrent) \
	F(cuCtxGetDevice) F(cuCtxGetFlags) F(cuCtxGetLimit) F(cuCtxGetSharedMemConfig) F(cuCtxGetStreamPriorityRange) F(cuCtxPopCurrent_v2) \
	F(cuCtxPushCurrent_v2) F(cuCtxResetPersistingL2Cache) F(cuCtxSetCacheConfig) F(cuCtxSetCurrent) F(cuCtxSetLimit) F(cuCtxSetSharedMemConfig) \
	F(cuCtxSynchronize) F(cuDeviceCanAccessPeer) F(cuDeviceGet) F(cuDeviceGetAttribute) F(cuDeviceGetName) F(cuDeviceGetP2PAttribute) F(cuDeviceGetPCIBusId) \
	F(cuDeviceGetUuid) F(cuDeviceGetUuid_v2) F(cuDevicePrimaryCtxGetState) F(cuDevicePrimaryCtxRelease_v2) F(cuDevicePrimaryCtxReset_v2) \
	F(cuDevicePrimaryCtxRetain) F(cuDevicePrimaryCtxSetFlags_v2) F(cuDeviceTotalMem_v2) F(cuDriverGetVersion) F(cuEventCreate) F(cuEventDestroy_v2) \
	F(cuEventElapsedTime) F(cuEventQuery) F(cuEventRecord) F(cuEventSynchronize) F(cuFuncGetAttribute) F(cuFuncSetAttribute) F(cuFuncSetCacheConfig) \
	F(cuFuncSetSharedMemConfig) F(cuGetErrorName) F(cuGraphAddChildGraphNode) F(cuGraphAddDependencies) F(cuGraphAddEmptyNode) F(cuGraphAddHostNode) \
	F(cuGraphAddKernelNode) F(cuGraphAddMemcpyNode) F(cuGraphAddMemsetNode) F(cuGraphClone) F(cuGraphCreate) F(cuGraphDestroy) F(cuGraphDestroyNode) \
	F(cuGraphExecDestroy) F(cuGraphGetEdges) F(cuGraphInstantiateWithFlags) F(cuGraphLaunch) F(cuGraphUpload) F(cuLaunchKernel) F(cuLaunchKernelEx) F(cuLinkAddData_v2) \
	F(cuLinkAddFile_v2) F(cuLinkComplete) F(cuLinkCreate_v2) F(cuLinkDestroy) F(cuMemAddressFree) F(cuMemAddressReserve) F(cuMemAdvise) \
	F(cuMemAllocManaged) F(cuMemAllocPitch_v2) F(cuMemAlloc_v2) F(cuMemCreate) F(cuMemFreeHost) F(cuMemFree_v2) F(cuMemGetAddressRange_v2) \
	F(cuMemGetAllocationGranularity) F(cuMemGetInfo_v2) F(cuMemHostGetDevicePointer_v2) F(cuMemHostRegister_v2) F(cuMemHostUnregister) F(cuMemMap) F(cuMemPrefetchAsync) \
	F(cuMemRelease) F(cuMemSetAccess) F(cuMemUnmap) F(cuMemcpy) F(cuMemcpy2DAsync_v2) F(cuMemcpy2DUnaligned_v2) F(cuMemcpy2D_v2) F(cuMemcpy3DAsync_v2) \
	F(cuMemcpy3DPeer) F(cuMemcpy3DPeerAsync) F(cuMemcpy3D_v2) F(cuMemcpyAsync) F(cuMemcpyAtoA_v2) F(cuMemcpyAtoD_v2) F(cuMemcpyAtoHAsync_v2) \
	F(cuMemcpyAtoH_v2) F(cuMemcpyDtoA_v2) F(cuMemcpyDtoDAsync_v2) F(cuMemcpyDtoD_v2) F(cuMemcpyDtoHAsync_v2) F(cuMemcpyDtoH_v2) F(cuMemcpyHtoAAsync_v2) \
	F(cuMemcpyHtoA_v2) F(cuMemcpyHtoDAsync_v2) F(cuMemcpyHtoD_v2) F(cuMemcpyPeer) F(cuMemcpyPeerAsync) F(cuMemsetD16Async) F(cuMemsetD16_v2) \
	F(cuMemsetD2D16Async) F(cuMemsetD2D16_v2) F(cuMemsetD2D32Async) F(cuMemsetD2D32_v2) F(cuMemsetD2D8Async) F(cuMemsetD2D8_v2) F(cuMemsetD32Async) \
	F(cuMemsetD32_v2) F(cuMemsetD8Async) F(cuMemsetD8_v2) F(cuModuleGetFunction) F(cuModuleGetGlobal_v2) F(cuModuleGetSurfRef) F(cuModuleGetTexRef) \
	F(cuModuleLoad) F(cuModuleLoadData) F(cuModuleLoadDataEx) F(cuModuleLoadFatBinary) F(cuModuleUnload) F(cuOccupancyMaxActiveBlocksPerMultiprocessor) \
	F(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags) F(cuPointerGetAttribute) F(cuPointerSetAttribute) F(cuStreamAttachMemAsync) \
	F(cuStreamBeginCapture_v2) F(cuStreamCreate) F(cuStreamCreateWithPriority) F(cuStreamDestroy_v2) F(cuStreamEndCapture) F(cuStreamGetFlags) \
	F(cuStreamGetPriority) F(cuStreamQuery) F(cuStreamSynchronize) F(cuStreamWaitEvent) F(cuStreamWaitValue32) F(cuStreamWriteValue32) \
	F(cuSurfRefGetArray) F(cuSurfRefSetArray) F(cuTexRefGetAddressMode) F(cuTexRefGetAddress_v2) F(cuTexRefGetArray) F(cuTexRefGetBorderColor) \
	F(cuTexRefGetFilterMode) F(cuTexRefGetFlags) F(cuTexRefGetFormat) F(cuTexRefGetMaxAnisotropy) F(cuTexRefSetAddress2D_v3) F(cuTexRefSetAddressMode) \
	F(cuTexRefSetAddress_v2) F(cuTexRefSetArray) F(cuTexRefSetBorderColor) F(cuTexRefSetFilterMode) F(cuTexRefSetFlags) F(cuTexRefSetFormat) \
	F(cuTexRefSetMaxAnisotropy) F(cuTexRefSetMipmapFilterMode) F(cuTexRefSetMipmapLevelBias) F(cuTexRefSetMipmapLevelClamp)

// Each function's slot holds where it goes: first to estiba_cuda_first, which opens the library and fills all slots.
void estiba_cuda_first(void);
#define SLOT(name) __attribute__((visibility("hidden"))) void *slot_##name = (void *)estiba_cuda_first;
FUNCTIONS(SLOT)

static struct { const char *name; void **slot; } functions[] = {
#define ENTRY(name) {#name, &slot_##name},
	FUNCTIONS(ENTRY)
};

// What is passed in registers must arrive there: estiba_cuda_first keeps all that may hold arguments, besides those
// that a called function keeps itself. Arguments on the stack stay where they are.
#if defined(__x86_64__)
#define JUMP(name) __asm__(".text\n.p2align 4\n.globl " #name "\n.hidden " #name "\n.type " #name ", @function\n" #name ":\n" \
	"\tleaq slot_" #name "(%rip), %r11\n\tjmpq *(%r11)\n.size " #name ", . - " #name "\n");
__asm__(".text\n.p2align 4\n.globl estiba_cuda_first\n.hidden estiba_cuda_first\n.type estiba_cuda_first, @function\nestiba_cuda_first:\n"
	"\tpushq %rbp\n\tmovq %rsp, %rbp\n\tsubq $208, %rsp\n" // a call needs the stack aligned to 16 bytes: 8 (return) + 8 (rbp) + 208
	"\tmovq %rdi, (%rsp)\n\tmovq %rsi, 8(%rsp)\n\tmovq %rdx, 16(%rsp)\n\tmovq %rcx, 24(%rsp)\n\tmovq %r8, 32(%rsp)\n\tmovq %r9, 40(%rsp)\n\tmovq %rax, 48(%rsp)\n\tmovq %r11, 56(%rsp)\n"
	"\tmovups %xmm0, 64(%rsp)\n\tmovups %xmm1, 80(%rsp)\n\tmovups %xmm2, 96(%rsp)\n\tmovups %xmm3, 112(%rsp)\n"
	"\tmovups %xmm4, 128(%rsp)\n\tmovups %xmm5, 144(%rsp)\n\tmovups %xmm6, 160(%rsp)\n\tmovups %xmm7, 176(%rsp)\n"
	"\tcall estiba_cuda_start\n"
	"\tmovq (%rsp), %rdi\n\tmovq 8(%rsp), %rsi\n\tmovq 16(%rsp), %rdx\n\tmovq 24(%rsp), %rcx\n\tmovq 32(%rsp), %r8\n\tmovq 40(%rsp), %r9\n\tmovq 48(%rsp), %rax\n\tmovq 56(%rsp), %r11\n"
	"\tmovups 64(%rsp), %xmm0\n\tmovups 80(%rsp), %xmm1\n\tmovups 96(%rsp), %xmm2\n\tmovups 112(%rsp), %xmm3\n"
	"\tmovups 128(%rsp), %xmm4\n\tmovups 144(%rsp), %xmm5\n\tmovups 160(%rsp), %xmm6\n\tmovups 176(%rsp), %xmm7\n"
	"\tleave\n\tjmpq *(%r11)\n.size estiba_cuda_first, . - estiba_cuda_first\n");
#elif defined(__aarch64__)
#define JUMP(name) __asm__(".text\n.p2align 4\n.globl " #name "\n.hidden " #name "\n.type " #name ", %function\n" #name ":\n" \
	"\tadrp x16, slot_" #name "\n\tadd x16, x16, :lo12:slot_" #name "\n\tldr x17, [x16]\n\tbr x17\n.size " #name ", . - " #name "\n");
__asm__(".text\n.p2align 4\n.globl estiba_cuda_first\n.hidden estiba_cuda_first\n.type estiba_cuda_first, %function\nestiba_cuda_first:\n"
	"\tstp x29, x30, [sp, #-224]!\n\tmov x29, sp\n"
	"\tstp x0, x1, [sp, #16]\n\tstp x2, x3, [sp, #32]\n\tstp x4, x5, [sp, #48]\n\tstp x6, x7, [sp, #64]\n\tstp x8, x16, [sp, #80]\n"
	"\tstp q0, q1, [sp, #96]\n\tstp q2, q3, [sp, #128]\n\tstp q4, q5, [sp, #160]\n\tstp q6, q7, [sp, #192]\n"
	"\tbl estiba_cuda_start\n"
	"\tldp x0, x1, [sp, #16]\n\tldp x2, x3, [sp, #32]\n\tldp x4, x5, [sp, #48]\n\tldp x6, x7, [sp, #64]\n\tldp x8, x16, [sp, #80]\n"
	"\tldp q0, q1, [sp, #96]\n\tldp q2, q3, [sp, #128]\n\tldp q4, q5, [sp, #160]\n\tldp q6, q7, [sp, #192]\n"
	"\tldp x29, x30, [sp], #224\n\tldr x17, [x16]\n\tbr x17\n.size estiba_cuda_first, . - estiba_cuda_first\n");
#else
#error "the CUDA driver is there for amd64 and arm64"
#endif
FUNCTIONS(JUMP)

static char failure[512]; // why the driver cannot be used; empty where it can
static CUresult (*count)(int *);

static CUresult absent(void) { return CUDA_ERROR_NOT_FOUND; } // a function that this driver is too old, or too new, to have
static CUresult driverless(void) { return CUDA_ERROR_NO_DEVICE; }

static void start(void) {
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		const char *why = dlerror();
		snprintf(failure, sizeof failure, "%s", why ? why : "libcuda.so.1 cannot be opened");
	}
	for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
		void *f = library ? dlsym(library, functions[i].name) : (void *)driverless;
		__atomic_store_n(functions[i].slot, f ? f : (void *)absent, __ATOMIC_RELEASE);
	}
	if (!library) return;
	CUresult (*initialize)(unsigned int) = (CUresult (*)(unsigned int))dlsym(library, "cuInit");
	count = (CUresult (*)(int *))dlsym(library, "cuDeviceGetCount");
	if (!initialize || !count) {
		snprintf(failure, sizeof failure, "libcuda.so.1 is not the library that its name says; install the driver anew");
		return;
	}
	CUresult r = initialize(0);
	if (r != CUDA_SUCCESS) {
		const char *name = NULL;
		cuGetErrorName(r, &name);
		snprintf(failure, sizeof failure, "the driver does not start: %s (%d)", name ? name : "an unknown error", r);
	}
}

__attribute__((visibility("hidden"))) void estiba_cuda_start(void) {
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, start);
}

const char *estiba_cuda_failure(void) {
	estiba_cuda_start();
	return failure[0] ? failure : NULL;
}

__attribute__((visibility("hidden"))) CUresult cuInit(unsigned int flags) {
	(void)flags;
	return CUDA_SUCCESS;
}

__attribute__((visibility("hidden"))) CUresult cuDeviceGetCount(int *n) {
	*n = 0;
	return estiba_cuda_failure() ? CUDA_SUCCESS : count(n);
}
