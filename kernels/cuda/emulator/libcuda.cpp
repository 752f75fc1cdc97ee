// libcuda.cpp: a CUDA driver whose devices are emulated: libcuda.so.1 for tests, so that a program which drives
// GPUs runs where there is none. Kernels are those that are linked in (sim.h), found by name whatever the image.
//
// Device memory is host memory, and an address without memory behind it faults as on a device: physical memory is
// pages of a memory file, and what is not mapped is not there. New memory holds NaNs. Streams are threads, so that
// what forgets to wait is seen to. It is stricter than a driver where a driver is slow or forgiving: an asynchronous copy needs
// pinned memory, and a launch exactly the kernel's parameters.
//
// ESTIBA_EMULATED_CUDA has settings, separated by commas, which estiba_emulated_set can change later:
//   devices=2           so many devices (1)
//   memory=256Mi        bytes of each (1Gi)
//   others=64Mi         bytes of each that somebody else uses (0)
//   processors=4        (4)
//   capability=9.0      (8.0)
//   granularity=64Ki    of virtual memory (2Mi)
//   images=ptx          machine code is refused, as by a driver that does not know it (all)
//   schedule=greedy     the order in which threads run: greedy, or inorder
//   workers=1           blocks that run at a time (0: as many as there are processors)
//   fail=launch:3:700   the third launch fails with this code; :1 behind it means on device 1 only. May be given often. Else than launches:
//                       open load copy fill allocate create map reserve pin capture instantiate graph record
// CUDA_VISIBLE_DEVICES says which of the devices are there, by numbers or by the beginnings of UUIDs, and in which order; the first
// entry that is none ends the list. devices that settings name are those.
// A code that is sticky kills the context, when the work runs; 46, 214, 220 and 999 lose the device, until settings change.
#include "../../../runtime/backend/cuda/driver/include/cuda.h"
#include "sim.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr uintptr_t page = 4096;
constexpr unsigned maxDevices = 16;

// say why a call failed: a driver gives no more than a number.
void say(const char* format, ...) __attribute__((format(printf, 1, 2)));
void say(const char* format, ...) {
	char text[1024];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	fprintf(stderr, "emulated CUDA: %s\n", text);
}

bool losesDevice(int code) { return code == 46 || code == 214 || code == 220 || code == 999; }
bool isSticky(int code) {
	return losesDevice(code) || code == 700 || code == 702 || code == 709 || code == 710 || (code >= 714 && code <= 719) || code == 226;
}

struct Plan {
	std::string op;
	long at, seen;
	int code, device; // -1: any
};

struct Settings {
	int devices = 1, processors = 4, major = 8, minor = 0, workers = 0;
	size_t memory = size_t(1) << 30, others = 0, granularity = 2 << 20;
	sim::Schedule schedule = sim::Schedule::InOrder;
	bool compiles = false; // no machine code
	std::vector<Plan> plans;
};

bool bytes(const std::string& text, size_t* n) {
	char* end;
	*n = strtoull(text.c_str(), &end, 10);
	if (end == text.c_str()) return false;
	if (!strcmp(end, "Ki")) *n <<= 10, end += 2;
	if (!strcmp(end, "Mi")) *n <<= 20, end += 2;
	if (!strcmp(end, "Gi")) *n <<= 30, end += 2;
	return !*end;
}

// fails says whether an operation is one that settings can have fail.
bool fails(const std::string& op) {
	static const std::set<std::string> all = {"open",  "load", "copy", "fill", "allocate", "create", "map", "reserve", "pin", "capture", "instantiate", "graph", "record", "launch"};
	return all.count(op) > 0;
}

bool parse(const char* text, Settings* s) {
	std::string all = text, item;
	for (size_t at = 0; at < all.size(); at += item.size() + 1) {
		item = all.substr(at, all.find(',', at) - at);
		const size_t equals = item.find('=');
		const std::string key = item.substr(0, equals), value = equals == std::string::npos ? "" : item.substr(equals + 1);
		char op[32];
		Plan p{"", 0, 0, 0, -1};
		size_t n = 0;
		bool good = true;
		if (key.empty()) {
		} else if (key == "devices") {
			good = bytes(value, &n) && n <= maxDevices;
			s->devices = int(n);
		} else if (key == "processors") {
			good = bytes(value, &n) && n > 0;
			s->processors = int(n);
		} else if (key == "workers") {
			good = bytes(value, &n);
			s->workers = int(n);
		} else if (key == "memory") {
			good = bytes(value, &s->memory);
		} else if (key == "others") {
			good = bytes(value, &s->others);
		} else if (key == "granularity") {
			good = bytes(value, &s->granularity) && s->granularity >= page && !(s->granularity & (s->granularity - 1));
		} else if (key == "capability") {
			good = sscanf(value.c_str(), "%d.%d", &s->major, &s->minor) == 2;
		} else if (key == "images") {
			good = value == "ptx" || value == "all";
			s->compiles = value == "ptx";
		} else if (key == "schedule") {
			good = value == "greedy" || value == "inorder";
			s->schedule = value == "greedy" ? sim::Schedule::Greedy : sim::Schedule::InOrder;
		} else if (key == "fail") {
			good = sscanf(value.c_str(), "%31[a-z]:%ld:%d:%d", op, &p.at, &p.code, &p.device) >= 3;
			p.op = op;
			good = good && fails(p.op);
			s->plans.push_back(p);
		} else {
			good = false;
		}
		if (!good) {
			say("ESTIBA_EMULATED_CUDA: %s is no setting", item.c_str());
			return false;
		}
	}
	return true;
}

} // namespace

// What handles point to.
struct CUctx_st {
	int device, users = 0;
	int sticky = 0; // atomic: what every call fails with
	std::set<CUstream> streams;
	std::set<CUdeviceptr> allocations;
	CUstream first = nullptr; // the default stream
};

struct CUfunc_st {
	const sim::KernelEntry* kernel;
	CUmodule module;
	int dynamic; // bytes of shared memory that launches may ask for
};

struct CUmod_st {
	CUcontext context;
	std::map<std::string, CUfunction> functions;
};

typedef std::function<CUresult(CUcontext)> Work;

namespace {

struct Capture {
	CUstream origin;
	std::vector<Work> works;
	std::set<CUstream> streams;
	std::set<CUstream> loose; // streams with work that origin does not wait for yet
	bool broken = false;
};
typedef std::shared_ptr<Capture> Captured;

// Queue is a stream's work and the thread that does it.
struct Queue {
	std::mutex mu;
	std::condition_variable more, idle;
	std::deque<Work> works;
	bool busy = false, closed = false;
};

// Moment is one recording of an event.
struct Moment {
	std::mutex mu;
	std::condition_variable happened;
	bool done = false;
	int64_t at = 0; // ns
};

} // namespace

struct CUstream_st {
	CUcontext context;
	std::shared_ptr<Queue> queue;
	Captured capture;
};

struct CUevent_st {
	CUcontext context;
	bool timed;
	std::shared_ptr<Moment> last; // null: never recorded
	Captured capture; // recorded in a capture, by stream
	CUstream stream = nullptr;
};

struct CUgraph_st {
	std::vector<Work> works;
};

struct CUgraphExec_st {
	CUcontext context;
	std::shared_ptr<std::vector<Work>> works;
	std::shared_ptr<std::mutex> running;
};

namespace {

struct Device {
	int lost = 0; // code
	CUcontext primary = nullptr;
	size_t used = 0;
	int file = -1;
	size_t end = 0; // of the file's pages that were ever given out: none is given out twice
};

struct Physical {
	CUcontext maker;
	int device;
	size_t offset, size;
	int mappings = 0;
	bool released = false;
};

struct Mapping {
	size_t size;
	Physical* physical; // null: of cuMemAlloc
	int device;
	bool access;
	void* room; // of cuMemAlloc: what was mapped for it, guards included
	size_t roomSize;
};

struct World {
	std::mutex mu; // of all here and of what handles point to, but for queues and moments
	bool started = false;
	Settings settings;
	Device devices[maxDevices];
	std::vector<int> visible; // which they are of the machine's: what is told apart by UUID and bus
	std::set<void*> live; // contexts, modules, functions, streams, events, graphs
	std::set<Physical*> physical;
	std::map<uintptr_t, Mapping> mappings;
	std::map<uintptr_t, size_t> reserved, pinned;
};

// Never destroyed: threads may be at work when the process ends.
World& world() {
	static World& w = *new World;
	return w;
}

thread_local CUcontext current;
// Where a bad address leads to, while this thread copies. Volatile, since compilers know that memset does not look at it.
thread_local sigjmp_buf* volatile rescue __attribute__((tls_model("initial-exec")));
struct sigaction before[2]; // who handled SIGSEGV and SIGBUS

void onFault(int signal, siginfo_t* info, void* context) {
	if (rescue) siglongjmp(*rescue, 1);
	if (sim::fault(info->si_addr)) return; // it does not return if it was a kernel
	const struct sigaction& other = before[signal == SIGBUS];
	if (other.sa_flags & SA_SIGINFO)
		other.sa_sigaction(signal, info, context);
	else if (other.sa_handler != SIG_DFL && other.sa_handler != SIG_IGN)
		other.sa_handler(signal);
	else
		sigaction(signal, &other, nullptr); // it happens again, and ends the process
}

CUuuid uuidOf(int of) {
	const unsigned char first[] = {0xe5, 0x71, 0xba};
	CUuuid uuid;
	memset(uuid.bytes, 0, sizeof uuid.bytes);
	memcpy(uuid.bytes, first, sizeof first);
	uuid.bytes[15] = char(of);
	return uuid;
}

// named is the device of n that an entry of CUDA_VISIBLE_DEVICES means; -1: none, or several.
int named(const std::string& entry, int n) {
	char* end;
	const long number = strtol(entry.c_str(), &end, 10);
	if (!entry.empty() && !*end) return number >= 0 && number < n ? int(number) : -1;
	int found = -1;
	for (int i = 0; i < n && entry.size() > 4; i++) {
		const CUuuid uuid = uuidOf(i);
		std::string text = "GPU-";
		for (int k = 0; k < 16; k++) {
			char digits[4];
			snprintf(digits, sizeof digits, "%s%02x", k == 4 || k == 6 || k == 8 || k == 10 ? "-" : "", (unsigned char)uuid.bytes[k]);
			text += digits;
		}
		if (text.compare(0, entry.size(), entry)) continue;
		if (found >= 0) return -1;
		found = i;
	}
	return found;
}

// visible are the devices of n that the environment leaves.
std::vector<int> visible(int n) {
	std::vector<int> all;
	const char* text = getenv("CUDA_VISIBLE_DEVICES");
	if (!text) {
		for (int i = 0; i < n; i++) all.push_back(i);
		return all;
	}
	const std::string list = text;
	for (size_t at = 0; at < list.size();) {
		const std::string entry = list.substr(at, list.find(',', at) - at);
		const int device = named(entry, n);
		if (device < 0 || std::count(all.begin(), all.end(), device)) break;
		all.push_back(device);
		at += entry.size() + 1;
	}
	return all;
}

void apply(World& w, const Settings& s) {
	w.settings = s;
	w.visible = visible(s.devices);
	w.settings.devices = int(w.visible.size());
	for (Device& d : w.devices) d.lost = 0;
	sim::configure(s.schedule, s.workers);
}

bool start(World& w) {
	if (w.started) return true;
	Settings s;
	const char* text = getenv("ESTIBA_EMULATED_CUDA");
	if (text && !parse(text, &s)) return false;
	apply(w, s);
	struct sigaction a = {};
	a.sa_sigaction = onFault;
	a.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER; // a kernel that faulted never comes back from the handler
	sigemptyset(&a.sa_mask);
	sigaction(SIGSEGV, &a, &before[0]);
	sigaction(SIGBUS, &a, &before[1]);
	w.started = true;
	return true;
}

// planned is the code that settings want an operation to fail with, 0 mostly. The lock is held.
int planned(World& w, const char* op, int device) {
	int code = 0;
	for (Plan& p : w.settings.plans)
		if (p.op == op && (p.device < 0 || p.device == device) && ++p.seen == p.at) code = p.code;
	if (losesDevice(code)) w.devices[device].lost = code;
	return code;
}

// state is what is wrong with a context, 0 mostly.
int state(CUcontext c) {
	const int lost = __atomic_load_n(&world().devices[c->device].lost, __ATOMIC_ACQUIRE);
	return lost ? lost : __atomic_load_n(&c->sticky, __ATOMIC_ACQUIRE);
}

void kill(CUcontext c, int code) {
	int none = 0;
	__atomic_compare_exchange_n(&c->sticky, &none, code, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
	if (losesDevice(code)) __atomic_store_n(&world().devices[c->device].lost, code, __ATOMIC_RELEASE);
}

// ENTER begins what needs a context: world w, locked, and context c.
#define ENTER \
	World& w = world(); \
	std::unique_lock<std::mutex> lock(w.mu); \
	if (!w.started) return CUDA_ERROR_NOT_INITIALIZED; \
	CUcontext c = current; \
	if (!c || !w.live.count(c)) return CUDA_ERROR_INVALID_CONTEXT; \
	if (const int wrong = state(c)) return CUresult(wrong)

#define PLANNED(op) \
	if (const int code = planned(w, op, c->device)) { \
		if (isSticky(code)) kill(c, code); \
		return CUresult(code); \
	}

#define LIVE(handle) \
	if (!w.live.count(handle)) return CUDA_ERROR_INVALID_HANDLE

void run(std::shared_ptr<Queue> q, CUcontext c) {
	std::unique_lock<std::mutex> lock(q->mu);
	for (;;) {
		while (q->works.empty()) {
			if (q->closed) return;
			q->more.wait(lock);
		}
		Work work = std::move(q->works.front());
		q->works.pop_front();
		q->busy = true;
		lock.unlock();
		const CUresult r = work(c);
		if (r != CUDA_SUCCESS && r != CUresult(state(c))) kill(c, r);
		work = nullptr;
		lock.lock();
		q->busy = false;
		if (q->works.empty()) q->idle.notify_all();
	}
}

CUstream newStream(World& w, CUcontext c) {
	CUstream s = new CUstream_st{c, std::make_shared<Queue>(), nullptr};
	// Its thread takes faults, and no signal that the program may want to have.
	sigset_t all, old;
	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	std::thread(run, s->queue, c).detach();
	pthread_sigmask(SIG_SETMASK, &old, nullptr);
	w.live.insert(s);
	c->streams.insert(s);
	return s;
}

void push(CUstream s, Work work) {
	std::lock_guard<std::mutex> lock(s->queue->mu);
	s->queue->works.push_back(std::move(work));
	s->queue->more.notify_one();
}

void drain(Queue& q) {
	std::unique_lock<std::mutex> lock(q.mu);
	while (q.busy || !q.works.empty()) q.idle.wait(lock);
}

// submit queues work, or records it.
CUresult submit(CUstream s, Work work) {
	if (!s->capture) {
		push(s, std::move(work));
		return CUDA_SUCCESS;
	}
	if (s->capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	s->capture->works.push_back(std::move(work));
	if (s != s->capture->origin) s->capture->loose.insert(s);
	return CUDA_SUCCESS;
}

// guarded is f, or 700 where it touches an address without memory.
template <typename F> CUresult guarded(F f) {
	sigjmp_buf back;
	if (sigsetjmp(back, 0)) { // the handler blocks nothing
		rescue = nullptr;
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	}
	rescue = &back;
	f();
	rescue = nullptr;
	return CUDA_SUCCESS;
}

CUresult copyNow(void* to, const void* from, size_t n) {
	const CUresult r = guarded([=] { memmove(to, from, n); });
	if (r) say("a copy of %zu bytes from %p to %p touches memory that is not there any more", n, from, to);
	return r;
}

Work copying(void* to, const void* from, size_t n) {
	return [=](CUcontext c) { return state(c) ? CUDA_SUCCESS : copyNow(to, from, n); };
}

// mapped says whether n bytes of device memory are there. The lock is held.
bool mapped(World& w, CUdeviceptr at, size_t n) {
	uintptr_t next = at;
	while (next < at + n) {
		auto m = w.mappings.upper_bound(next);
		if (m == w.mappings.begin()) return false;
		--m;
		if (!m->second.access || next >= m->first + m->second.size) return false;
		next = m->first + m->second.size;
	}
	return true;
}

bool isPinned(World& w, const void* p, size_t n) {
	auto m = w.pinned.upper_bound(uintptr_t(p));
	if (m == w.pinned.begin()) return false;
	--m;
	return uintptr_t(p) + n <= m->first + m->second;
}

// forget gives physical memory back once it is neither held nor mapped.
void forget(World& w, Physical* p) {
	if (!p->released || p->mappings > 0) return;
	fallocate(w.devices[p->device].file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off_t(p->offset), off_t(p->size));
	w.devices[p->device].used -= p->size;
	w.physical.erase(p);
	delete p;
}

void unmap(World& w, std::map<uintptr_t, Mapping>::iterator m) {
	mmap((void*)m->first, m->second.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	Physical* p = m->second.physical;
	w.mappings.erase(m);
	p->mappings--;
	forget(w, p);
}

// bury gives back what a context that is dead can give back no more. A driver does so when the process ends.
void bury(World& w, CUcontext c) {
	for (auto m = w.mappings.begin(); m != w.mappings.end();) {
		auto next = std::next(m);
		if (m->second.physical && m->second.physical->maker == c) unmap(w, m);
		m = next;
	}
	for (auto p = w.physical.begin(); p != w.physical.end();) {
		Physical* each = *p++;
		if (each->maker != c) continue;
		each->released = true;
		forget(w, each);
	}
}

bool room(World& w, int device, size_t n) { return w.devices[device].used + w.settings.others + n <= w.settings.memory; }

void unallocate(World& w, CUdeviceptr at) {
	auto m = w.mappings.find(at);
	sim::allow(m->second.room, m->second.roomSize);
	munmap(m->second.room, m->second.roomSize);
	w.devices[m->second.device].used -= m->second.size;
	w.mappings.erase(m);
}

size_t sharedLimit(const Settings& s) { // a block's, of devices of this capability
	if (s.major == 8) return (s.minor == 0 || s.minor == 7 ? 163 : 99) << 10;
	return (s.major == 12 ? 99 : 227) << 10;
}

int64_t now() {
	timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// streamOf is the stream that a handle means: null is the context's default stream.
CUstream streamOf(World& w, CUcontext c, CUstream s) {
	if (s) return w.live.count(s) && s->context == c ? s : nullptr;
	if (!c->first) c->first = newStream(w, c);
	return c->first;
}

#define STREAM \
	if (!(s = streamOf(w, c, s))) return CUDA_ERROR_INVALID_HANDLE

// spoil a capture, by what cannot be recorded: to wait, mostly.
CUresult spoil(Captured capture) {
	capture->broken = true;
	return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

// settle waits for all streams of a context, without the lock.
CUresult settle(std::unique_lock<std::mutex>& lock, CUcontext c) {
	std::vector<std::shared_ptr<Queue>> queues;
	for (CUstream s : c->streams) {
		if (s->capture) return spoil(s->capture);
		queues.push_back(s->queue);
	}
	lock.unlock();
	for (auto& q : queues) drain(*q);
	lock.lock();
	return CUresult(state(c));
}

CUresult launchNow(CUcontext c, const sim::KernelEntry* k, const uint32_t grid[3], uint32_t threads, uint32_t shared, const void* params) {
	if (state(c)) return CUDA_SUCCESS;
	char error[1024] = "";
	if (sim::runKernel(k, grid, threads, shared, params, error, sizeof error)) return CUDA_SUCCESS;
	say("%s", error);
	return strstr(error, "illegal address") ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_ERROR_LAUNCH_FAILED;
}

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// estiba_emulated_set replaces all settings; false if text is none.
bool estiba_emulated_set(const char* text) {
	Settings s;
	if (!parse(text, &s)) return false;
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	if (!start(w)) return false; // which takes those of the environment
	apply(w, s);
	return true;
}

CUresult cuInit(unsigned int flags) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	return flags || !start(w) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
	*version = 12040;
	return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
	static const std::map<int, const char*> names = {
#define NAME(n) {n, #n}
		NAME(CUDA_SUCCESS), NAME(CUDA_ERROR_INVALID_VALUE), NAME(CUDA_ERROR_OUT_OF_MEMORY), NAME(CUDA_ERROR_NOT_INITIALIZED), NAME(CUDA_ERROR_DEVICE_UNAVAILABLE),
		NAME(CUDA_ERROR_NO_DEVICE), NAME(CUDA_ERROR_INVALID_DEVICE), NAME(CUDA_ERROR_INVALID_IMAGE), NAME(CUDA_ERROR_NO_BINARY_FOR_GPU), NAME(CUDA_ERROR_INVALID_PTX), NAME(CUDA_ERROR_UNSUPPORTED_PTX_VERSION), NAME(CUDA_ERROR_INVALID_CONTEXT), NAME(CUDA_ERROR_ECC_UNCORRECTABLE),
		NAME(CUDA_ERROR_NVLINK_UNCORRECTABLE), NAME(CUDA_ERROR_INVALID_HANDLE), NAME(CUDA_ERROR_NOT_FOUND), NAME(CUDA_ERROR_NOT_READY), NAME(CUDA_ERROR_ILLEGAL_ADDRESS),
		NAME(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES), NAME(CUDA_ERROR_CONTEXT_IS_DESTROYED), NAME(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED),
		NAME(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED), NAME(CUDA_ERROR_MISALIGNED_ADDRESS), NAME(CUDA_ERROR_LAUNCH_FAILED), NAME(CUDA_ERROR_NOT_SUPPORTED),
		NAME(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED), NAME(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED), NAME(CUDA_ERROR_STREAM_CAPTURE_MERGE),
		NAME(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED), NAME(CUDA_ERROR_STREAM_CAPTURE_UNJOINED), NAME(CUDA_ERROR_STREAM_CAPTURE_ISOLATION), NAME(CUDA_ERROR_CAPTURED_EVENT),
		NAME(CUDA_ERROR_UNKNOWN),
#undef NAME
	};
	const auto n = names.find(error);
	*name = n == names.end() ? nullptr : n->second;
	return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Devices.

CUresult cuDeviceGetCount(int* count) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	*count = w.settings.devices;
	return w.started ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
	int n;
	if (CUresult r = cuDeviceGetCount(&n)) return r;
	*device = ordinal;
	return ordinal >= 0 && ordinal < n ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char* name, int size, CUdevice) {
	snprintf(name, size_t(size), "emulated device");
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	if (device < 0 || device >= w.settings.devices) return CUDA_ERROR_INVALID_DEVICE;
	*uuid = uuidOf(w.visible[size_t(device)]);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

CUresult cuDeviceGetPCIBusId(char* id, int size, CUdevice device) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	if (device < 0 || device >= w.settings.devices) return CUDA_ERROR_INVALID_DEVICE;
	snprintf(id, size_t(size), "0000:%02X:00.0", w.visible[size_t(device)] + 1);
	return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t* total, CUdevice) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	*total = w.settings.memory;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	switch (attribute) {
	case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
	case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
	case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = w.settings.processors; break;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = w.settings.major; break;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = w.settings.minor; break;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 << 10; break;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = int(sharedLimit(w.settings)); break;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = int(sharedLimit(w.settings)) + 1024; break;
	case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 2048; break;
	case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: *value = 1; break;
	default: *value = 0;
	}
	return CUDA_SUCCESS;
}

// Contexts.

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	if (!w.started) return CUDA_ERROR_NOT_INITIALIZED;
	if (device < 0 || device >= w.settings.devices) return CUDA_ERROR_INVALID_DEVICE;
	Device& d = w.devices[device];
	if (const int code = planned(w, "open", device)) return CUresult(code);
	if (d.lost) return CUresult(d.lost);
	if (!d.primary) {
		d.primary = new CUctx_st;
		d.primary->device = device;
		w.live.insert(d.primary);
	}
	d.primary->users++;
	*context = d.primary;
	return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream s);

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
	World& w = world();
	std::unique_lock<std::mutex> lock(w.mu);
	if (device < 0 || device >= int(maxDevices)) return CUDA_ERROR_INVALID_DEVICE;
	CUcontext c = w.devices[device].primary;
	if (!c) return CUDA_ERROR_INVALID_CONTEXT;
	if (--c->users > 0) return CUDA_SUCCESS;
	w.devices[device].primary = nullptr;
	settle(lock, c);
	for (CUstream s : c->streams) {
		w.live.erase(s);
		std::lock_guard<std::mutex> its(s->queue->mu);
		s->queue->closed = true;
		s->queue->more.notify_one();
	}
	for (CUdeviceptr at : c->allocations) unallocate(w, at);
	if (state(c)) bury(w, c);
	w.live.erase(c); // kept, since threads may still look at it
	return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	if (context && !w.live.count(context)) return CUDA_ERROR_INVALID_CONTEXT;
	current = context;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
	*context = current;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
	ENTER;
	*device = c->device;
	return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
	ENTER;
	return settle(lock, c);
}

// Modules and functions.

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned int n, CUjit_option* options, void** values) {
	ENTER;
	PLANNED("load");
	if (!image) return CUDA_ERROR_INVALID_VALUE;
	if (!strncmp((const char*)image, "broken", 6)) { // for tests
		for (unsigned int i = 0; i < n; i++)
			if (options[i] == CU_JIT_ERROR_LOG_BUFFER) strcpy((char*)values[i], "the image is broken");
		return CUDA_ERROR_INVALID_IMAGE;
	}
	if (w.settings.compiles && !strncmp((const char*)image, "\177ELF", 4)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
	*module = new CUmod_st{c, {}};
	w.live.insert(*module);
	return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) { return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr); }

CUresult cuModuleUnload(CUmodule module) {
	ENTER;
	LIVE(module);
	for (auto& f : module->functions) {
		w.live.erase(f.second);
		delete f.second;
	}
	w.live.erase(module);
	delete module;
	return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
	ENTER;
	LIVE(module);
	CUfunction& f = module->functions[name];
	if (!f) {
		const sim::KernelEntry* k = sim::findKernel(name);
		if (!k) return CUDA_ERROR_NOT_FOUND;
		f = new CUfunc_st{k, module, 48 << 10};
		w.live.insert(f);
	}
	*function = f;
	return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction f) {
	ENTER;
	LIVE(f);
	switch (attribute) {
	case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = int(f->kernel->threads); break;
	case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = f->dynamic; break;
	default: *value = 0; // nobody knows here
	}
	return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value) {
	ENTER;
	LIVE(f);
	if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || size_t(value) > sharedLimit(w.settings)) return CUDA_ERROR_INVALID_VALUE;
	f->dynamic = value;
	return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction f, int threads, size_t shared) {
	ENTER;
	LIVE(f);
	if (threads < 1) return CUDA_ERROR_INVALID_VALUE;
	*blocks = int(std::min<size_t>(std::min<size_t>(32, 2048 / threads), (sharedLimit(w.settings) + 1024) / (shared + 1024)));
	return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction f, unsigned int gridX, unsigned int gridY, unsigned int gridZ, unsigned int blockX, unsigned int blockY, unsigned int blockZ, unsigned int shared,
                        CUstream s, void** params, void** extra) {
	ENTER;
	LIVE(f);
	STREAM;
	const sim::KernelEntry* k = f->kernel;
	if (f->module->context != c) return CUDA_ERROR_INVALID_HANDLE;
	if (!gridX || !gridY || !gridZ || gridX > 0x7fffffff || gridY > 65535 || gridZ > 65535 || !blockX || blockX > 1024 || blockY != 1 || blockZ != 1) {
		say("%s: a device takes no launch of %u x %u x %u blocks of %u x %u x %u threads", k->name, gridX, gridY, gridZ, blockX, blockY, blockZ);
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (blockX > k->threads) {
		say("%s: compiled for blocks of at most %u threads, launched with %u", k->name, k->threads, blockX);
		return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
	}
	if (shared > size_t(f->dynamic)) {
		say("%s: %u bytes of dynamic shared memory, where %d are allowed", k->name, shared, f->dynamic);
		return CUDA_ERROR_INVALID_VALUE;
	}
	const void* from = params ? params[0] : nullptr;
	size_t size = params ? k->paramsSize : 0;
	for (void** e = extra; e && *e != CU_LAUNCH_PARAM_END; e += 2) {
		if (*e == CU_LAUNCH_PARAM_BUFFER_POINTER) from = e[1];
		if (*e == CU_LAUNCH_PARAM_BUFFER_SIZE) size = *(size_t*)e[1];
	}
	if (!from || size != k->paramsSize) {
		say("%s: %zu bytes of parameters; the kernel has %u", k->name, size, k->paramsSize);
		return CUDA_ERROR_INVALID_VALUE;
	}
	struct Launch {
		const sim::KernelEntry* kernel;
		uint32_t grid[3], threads, shared;
		std::vector<char> params;
	};
	auto l = std::make_shared<Launch>(Launch{k, {gridX, gridY, gridZ}, blockX, shared, std::vector<char>((const char*)from, (const char*)from + size)});
	if (!s->capture) { // what is recorded counts when it runs
		const int code = planned(w, "launch", c->device);
		if (code && !isSticky(code)) return CUresult(code);
		if (code) return submit(s, [code](CUcontext) { return CUresult(code); });
		return submit(s, [l](CUcontext c) { return launchNow(c, l->kernel, l->grid, l->threads, l->shared, l->params.data()); });
	}
	return submit(s, [l](CUcontext c) {
		int code;
		{
			World& w = world();
			std::lock_guard<std::mutex> lock(w.mu);
			code = planned(w, "launch", c->device);
		}
		return code ? CUresult(code) : launchNow(c, l->kernel, l->grid, l->threads, l->shared, l->params.data());
	});
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* l, CUfunction f, void** params, void** extra) {
	for (unsigned i = 0; i < l->numAttrs; i++)
		if (l->attrs[i].id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) return CUDA_ERROR_INVALID_VALUE;
	return cuLaunchKernel(f, l->gridDimX, l->gridDimY, l->gridDimZ, l->blockDimX, l->blockDimY, l->blockDimZ, l->sharedMemBytes, l->hStream, params, extra);
}

// Streams and events.

CUresult cuStreamCreate(CUstream* s, unsigned int) {
	ENTER;
	*s = newStream(w, c);
	return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream s) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	LIVE(s);
	if (s->capture) return spoil(s->capture);
	w.live.erase(s);
	s->context->streams.erase(s);
	{
		std::lock_guard<std::mutex> its(s->queue->mu);
		s->queue->closed = true;
		s->queue->more.notify_one();
	}
	delete s;
	return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream s) {
	ENTER;
	STREAM;
	if (s->capture) return spoil(s->capture);
	std::shared_ptr<Queue> q = s->queue;
	lock.unlock();
	drain(*q);
	return CUresult(state(c));
}

CUresult cuStreamQuery(CUstream s) {
	ENTER;
	STREAM;
	if (s->capture) return spoil(s->capture);
	std::lock_guard<std::mutex> its(s->queue->mu);
	return s->queue->busy || !s->queue->works.empty() ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* e, unsigned int flags) {
	ENTER;
	*e = new CUevent_st{c, !(flags & CU_EVENT_DISABLE_TIMING), nullptr, nullptr};
	w.live.insert(*e);
	return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent e) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	LIVE(e);
	w.live.erase(e);
	delete e;
	return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent e, CUstream s) {
	ENTER;
	LIVE(e);
	STREAM;
	PLANNED("record");
	if (e->context != c) return CUDA_ERROR_INVALID_HANDLE;
	if (s->capture) {
		if (s->capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
		e->capture = s->capture;
		e->stream = s;
		return CUDA_SUCCESS;
	}
	e->capture = nullptr;
	auto m = e->last = std::make_shared<Moment>();
	return submit(s, [m](CUcontext) { // in a dead context too, so that nobody waits for ever
		std::lock_guard<std::mutex> lock(m->mu);
		m->done = true;
		m->at = now();
		m->happened.notify_all();
		return CUDA_SUCCESS;
	});
}

CUresult cuEventQuery(CUevent e) {
	ENTER;
	LIVE(e);
	if (e->capture) return CUDA_ERROR_CAPTURED_EVENT;
	if (!e->last) return CUDA_SUCCESS;
	std::lock_guard<std::mutex> its(e->last->mu);
	return e->last->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent e) {
	ENTER;
	LIVE(e);
	if (e->capture) return CUDA_ERROR_CAPTURED_EVENT;
	auto m = e->last;
	lock.unlock();
	if (m) {
		std::unique_lock<std::mutex> its(m->mu);
		while (!m->done) m->happened.wait(its);
	}
	return CUresult(state(c));
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
	ENTER;
	LIVE(start);
	LIVE(end);
	if (!start->timed || !end->timed || !start->last || !end->last) return CUDA_ERROR_INVALID_HANDLE;
	std::lock_guard<std::mutex> a(start->last->mu);
	std::unique_lock<std::mutex> b(end->last->mu, std::defer_lock);
	if (end->last != start->last) b.lock();
	if (!start->last->done || !end->last->done) return CUDA_ERROR_NOT_READY;
	*milliseconds = float(end->last->at - start->last->at) / 1e6f;
	return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned int) {
	ENTER;
	LIVE(e);
	STREAM;
	if (e->capture) {
		if (e->capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
		if (s->capture && s->capture != e->capture) return CUDA_ERROR_STREAM_CAPTURE_MERGE;
		if (!s->capture) {
			s->capture = e->capture; // it joins
			s->capture->streams.insert(s);
		}
		s->capture->loose.erase(e->stream); // works are recorded in the order of the calls, which is one that waits enough
		if (s != s->capture->origin) s->capture->loose.insert(s);
		return CUDA_SUCCESS;
	}
	if (s->capture) {
		s->capture->broken = true;
		return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	}
	auto m = e->last;
	if (!m) return CUDA_SUCCESS;
	return submit(s, [m](CUcontext) {
		std::unique_lock<std::mutex> lock(m->mu);
		while (!m->done) m->happened.wait(lock);
		return CUDA_SUCCESS;
	});
}

// Graphs: what was recorded, done in the order in which it was.

CUresult cuStreamBeginCapture(CUstream s, CUstreamCaptureMode) {
	ENTER;
	if (!s) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; // the default stream cannot
	STREAM;
	PLANNED("capture");
	if (s->capture) return CUDA_ERROR_ILLEGAL_STATE;
	s->capture = std::make_shared<Capture>();
	s->capture->origin = s;
	s->capture->streams.insert(s);
	return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream s, CUgraph* graph) {
	*graph = nullptr;
	ENTER;
	STREAM;
	Captured capture = s->capture;
	if (!capture) return CUDA_ERROR_ILLEGAL_STATE;
	if (capture->origin != s) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
	for (CUstream joined : capture->streams)
		if (w.live.count(joined)) joined->capture = nullptr;
	if (capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	if (!capture->loose.empty()) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
	*graph = new CUgraph_st{std::move(capture->works)};
	w.live.insert(*graph);
	return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	LIVE(graph);
	w.live.erase(graph);
	delete graph;
	return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long) {
	ENTER;
	LIVE(graph);
	PLANNED("instantiate");
	*exec = new CUgraphExec_st{c, std::make_shared<std::vector<Work>>(graph->works), std::make_shared<std::mutex>()};
	w.live.insert(*exec);
	return CUDA_SUCCESS;
}

CUresult cuGraphUpload(CUgraphExec exec, CUstream s) {
	ENTER;
	LIVE(exec);
	STREAM;
	return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream s) {
	ENTER;
	LIVE(exec);
	STREAM;
	PLANNED("graph");
	if (exec->context != c) return CUDA_ERROR_INVALID_HANDLE;
	auto works = exec->works;
	auto running = exec->running;
	return submit(s, [works, running](CUcontext c) {
		std::lock_guard<std::mutex> lock(*running);
		for (const Work& work : *works)
			if (CUresult r = work(c)) return r;
		return CUDA_SUCCESS;
	});
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	LIVE(exec);
	w.live.erase(exec);
	delete exec;
	return CUDA_SUCCESS;
}

// Memory.

CUresult cuMemGetInfo(size_t* available, size_t* total) {
	ENTER;
	const size_t taken = w.devices[c->device].used + w.settings.others;
	*total = w.settings.memory;
	*available = taken < *total ? *total - taken : 0;
	return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* at, size_t n) {
	ENTER;
	PLANNED("allocate");
	if (!n) return CUDA_ERROR_INVALID_VALUE;
	const size_t size = (n + 255) / 256 * 256, pages = (size + page - 1) / page * page;
	if (!room(w, c->device, size)) return CUDA_ERROR_OUT_OF_MEMORY;
	char* p = (char*)mmap(nullptr, pages + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
	mprotect(p, page, PROT_NONE);
	mprotect(p + page + pages, page, PROT_NONE);
	char* begin = p + page + pages - size; // what is beyond its end faults
	memset(begin, 0xff, size);
	sim::forbid(begin + n, size - n);
	w.mappings[uintptr_t(begin)] = Mapping{size, nullptr, c->device, true, p, pages + 2 * page};
	w.devices[c->device].used += size;
	c->allocations.insert(CUdeviceptr(begin));
	*at = CUdeviceptr(begin);
	return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr at) {
	ENTER;
	if (!c->allocations.count(at)) return CUDA_ERROR_INVALID_VALUE;
	const CUresult r = settle(lock, c);
	if (!c->allocations.erase(at)) return CUDA_ERROR_INVALID_VALUE;
	unallocate(w, at);
	return r;
}

CUresult cuMemHostRegister(void* p, size_t n, unsigned int) {
	ENTER;
	PLANNED("pin");
	if (!p || !n) return CUDA_ERROR_INVALID_VALUE;
	auto next = w.pinned.lower_bound(uintptr_t(p));
	if (next != w.pinned.end() && next->first < uintptr_t(p) + n) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	if (next != w.pinned.begin() && std::prev(next)->first + std::prev(next)->second > uintptr_t(p)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	w.pinned[uintptr_t(p)] = n;
	return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void* p) {
	ENTER;
	return w.pinned.erase(uintptr_t(p)) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr* at, void* p, unsigned int) {
	ENTER;
	if (!isPinned(w, p, 1)) return CUDA_ERROR_INVALID_VALUE;
	*at = CUdeviceptr(p);
	return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
	World& w = world();
	std::lock_guard<std::mutex> lock(w.mu);
	*granularity = w.settings.granularity;
	return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* at, size_t size, size_t, CUdeviceptr, unsigned long long) {
	ENTER;
	PLANNED("reserve");
	const size_t unit = w.settings.granularity;
	if (!size || size % unit) return CUDA_ERROR_INVALID_VALUE;
	char* p = (char*)mmap(nullptr, size + unit, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
	char* begin = (char*)((uintptr_t(p) + unit - 1) / unit * unit);
	if (begin > p) munmap(p, size_t(begin - p));
	if (begin < p + unit) munmap(begin + size, size_t(p + unit - begin));
	w.reserved[uintptr_t(begin)] = size;
	*at = CUdeviceptr(begin);
	return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr at, size_t size) {
	ENTER;
	const auto r = w.reserved.find(at);
	if (r == w.reserved.end() || r->second != size) return CUDA_ERROR_INVALID_VALUE;
	const auto m = w.mappings.lower_bound(at);
	if (m != w.mappings.end() && m->first < at + size) return CUDA_ERROR_INVALID_VALUE; // something is mapped there still
	munmap((void*)at, size);
	w.reserved.erase(r);
	return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t size, const CUmemAllocationProp* prop, unsigned long long) {
	ENTER;
	PLANNED("create");
	const int device = prop->location.id;
	if (prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE || device < 0 || device >= w.settings.devices || !size ||
	    size % w.settings.granularity)
		return CUDA_ERROR_INVALID_VALUE;
	if (!room(w, device, size)) return CUDA_ERROR_OUT_OF_MEMORY;
	Device& d = w.devices[device];
	if (d.file < 0) d.file = memfd_create("emulated device", MFD_CLOEXEC);
	if (d.file < 0 || ftruncate(d.file, off_t(d.end + size))) return CUDA_ERROR_OPERATING_SYSTEM;
	Physical* p = new Physical{c, device, d.end, size};
	d.end += size;
	d.used += size;
	w.physical.insert(p);
	*handle = CUmemGenericAllocationHandle(uintptr_t(p));
	return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
	ENTER;
	Physical* p = (Physical*)uintptr_t(handle);
	if (!w.physical.count(p) || p->released) return CUDA_ERROR_INVALID_VALUE;
	p->released = true;
	forget(w, p);
	return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long) {
	ENTER;
	PLANNED("map");
	Physical* p = (Physical*)uintptr_t(handle);
	if (!w.physical.count(p) || p->released || offset || size != p->size || at % w.settings.granularity) return CUDA_ERROR_INVALID_VALUE;
	auto r = w.reserved.upper_bound(at);
	if (r == w.reserved.begin() || at + size > std::prev(r)->first + std::prev(r)->second) return CUDA_ERROR_INVALID_VALUE;
	auto next = w.mappings.lower_bound(at);
	if (next != w.mappings.end() && next->first < at + size) return CUDA_ERROR_INVALID_VALUE;
	if (next != w.mappings.begin() && std::prev(next)->first + std::prev(next)->second.size > at) return CUDA_ERROR_INVALID_VALUE;
	if (mmap((void*)at, size, PROT_NONE, MAP_SHARED | MAP_FIXED, w.devices[p->device].file, off_t(p->offset)) == MAP_FAILED) return CUDA_ERROR_OPERATING_SYSTEM;
	p->mappings++;
	w.mappings[at] = Mapping{size, p, p->device, false, nullptr, 0};
	return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr at, size_t size, const CUmemAccessDesc* access, size_t n) {
	ENTER;
	if (n != 1) return CUDA_ERROR_NOT_SUPPORTED;
	auto m = w.mappings.find(at);
	for (CUdeviceptr next = at; next < at + size; ++m) {
		if (m == w.mappings.end() || m->first != next || next + m->second.size > at + size) return CUDA_ERROR_INVALID_VALUE;
		next += m->second.size;
	}
	const bool all = access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	for (m = w.mappings.find(at); m != w.mappings.end() && m->first < at + size; ++m) m->second.access = all;
	return mprotect((void*)at, size, all ? PROT_READ | PROT_WRITE : access->flags == CU_MEM_ACCESS_FLAGS_PROT_READ ? PROT_READ : PROT_NONE) ? CUDA_ERROR_OPERATING_SYSTEM
	                                                                                                                                         : CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr at, size_t size) {
	ENTER;
	auto m = w.mappings.find(at);
	if (m == w.mappings.end() || !m->second.physical || m->second.size != size) return CUDA_ERROR_INVALID_VALUE;
	unmap(w, m);
	return CUDA_SUCCESS;
}

// Copies and fills.

#define DEVICE_MEMORY(at, n) \
	if (!mapped(w, at, n)) { \
		say("%s: %zu bytes at %#llx are not all device memory", __func__, size_t(n), at); \
		return CUDA_ERROR_INVALID_VALUE; \
	}
#define PINNED(p, n) \
	if (!isPinned(w, p, n)) { \
		say("%s: %zu bytes of host memory at %p are not pinned: a driver would copy them twice, and wait", __func__, size_t(n), (const void*)p); \
		return CUDA_ERROR_INVALID_VALUE; \
	}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t n) {
	ENTER;
	PLANNED("copy");
	DEVICE_MEMORY(to, n);
	lock.unlock();
	return copyNow((void*)to, from, n);
}

CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t n) {
	ENTER;
	PLANNED("copy");
	DEVICE_MEMORY(from, n);
	lock.unlock();
	return copyNow(to, (const void*)from, n);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t n, CUstream s) {
	ENTER;
	STREAM;
	PLANNED("copy");
	DEVICE_MEMORY(to, n);
	PINNED(from, n);
	return submit(s, copying((void*)to, from, n));
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t n, CUstream s) {
	ENTER;
	STREAM;
	PLANNED("copy");
	DEVICE_MEMORY(from, n);
	PINNED(to, n);
	return submit(s, copying(to, (const void*)from, n));
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
	ENTER;
	STREAM;
	PLANNED("copy");
	DEVICE_MEMORY(from, n);
	DEVICE_MEMORY(to, n);
	return submit(s, copying((void*)to, (const void*)from, n));
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t n, CUstream s) {
	ENTER;
	STREAM;
	PLANNED("fill");
	DEVICE_MEMORY(at, n);
	return submit(s, [=](CUcontext c) { return state(c) ? CUDA_SUCCESS : guarded([=] { memset((void*)at, value, n); }); });
}

} // extern "C"
#pragma GCC visibility pop
