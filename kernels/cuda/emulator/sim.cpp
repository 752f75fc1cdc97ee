// sim.cpp: fibers, the orders in which they run, and what they do where they meet.
#define ESTIBA_EMULATED
#include "../gpu.cuh"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define ESTIBA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ESTIBA_ASAN 1
#endif
#endif
#ifdef ESTIBA_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

// simSwitch keeps the registers that a callee keeps on the stack, the stack pointer in *from, and goes on with to.
extern "C" void simSwitch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
	.text
	.globl simSwitch
	.hidden simSwitch
	.type simSwitch, @function
simSwitch:
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	ret
	.size simSwitch, .-simSwitch
)");
#elif defined(__aarch64__)
asm(R"(
	.text
	.globl simSwitch
	.hidden simSwitch
	.type simSwitch, %function
simSwitch:
	stp x19, x20, [sp, #-160]!
	stp x21, x22, [sp, #16]
	stp x23, x24, [sp, #32]
	stp x25, x26, [sp, #48]
	stp x27, x28, [sp, #64]
	stp x29, x30, [sp, #80]
	stp d8, d9, [sp, #96]
	stp d10, d11, [sp, #112]
	stp d12, d13, [sp, #128]
	stp d14, d15, [sp, #144]
	mov x9, sp
	str x9, [x0]
	mov sp, x1
	ldp x21, x22, [sp, #16]
	ldp x23, x24, [sp, #32]
	ldp x25, x26, [sp, #48]
	ldp x27, x28, [sp, #64]
	ldp x29, x30, [sp, #80]
	ldp d8, d9, [sp, #96]
	ldp d10, d11, [sp, #112]
	ldp d12, d13, [sp, #128]
	ldp d14, d15, [sp, #144]
	ldp x19, x20, [sp], #160
	ret
	.size simSwitch, .-simSwitch
)");
#else
#error "fibers need a switch for this processor"
#endif

namespace sim {

__thread Place place;

namespace {

constexpr u32 maxThreads = 1024, lanes = 32;
constexpr size_t staticLimit = 48 << 10, dynamicLimit = 227 << 10, between = 128; // bytes; between arrays, to see writes beyond them
constexpr u32 maxArrays = 64;
constexpr u8 unset = 0xff, untouched = 0xa5; // a NaN and -1 in every type; what lies between arrays
#ifdef ESTIBA_ASAN
constexpr size_t stackSize = 512 << 10;
#else
constexpr size_t stackSize = 128 << 10;
#endif
constexpr size_t pageSize = 4096; // at most, to guard a stack; rounded up by mmap where pages are larger

const KernelEntry* kernels; // set before main
int configuredSchedule, configuredWorkers;

const char* names[] = {
	"barrier", "warpBarrier", "shuffleXor", "shuffleDown", "shuffle", "ballot",
	"ldmatrix4", "ldmatrix4T", "ldmatrix2", "mmaBF16", "mmaF16",
};

enum class State { Ready, AtWarp, AtBarrier, Done };

struct Copy {
	void* to;
	const void* from;
	bool valid;
};

struct Fiber {
	void* stackPointer;
	u8* stack;
	void* fake; // the sanitizer's
	State state;
	Op op; // where it waits, and with what
	At at;
	void* out;
	const void *a, *b;
	u32 argument;
	Copy* copies; // not done yet
	u32 copyCount, copyRoom;
	u32* groups; // how many copies were asked for when each was committed
	u32 groupCount, groupRoom;
};

struct Array {
	const void* key;
	const char* name;
	u8* at;
	size_t bytes;
};

struct Launch {
	const KernelEntry* kernel;
	Index grid;
	u32 threads, sharedBytes;
	const void* params;
	Schedule schedule;
	u64 total, next; // blocks; next is atomic
	bool failed; // atomic
	char* error;
	size_t errorSize;
	u32 busy; // workers at it, besides the caller
	Launch* after;
};

// Machine runs one block at a time on the operating system's thread that it belongs to.
struct Machine {
	Launch* launch;
	void* stackPointer; // of the thread, while a fiber runs
	const void* stackBottom; // for the sanitizer
	size_t stackBytes;
	void* fake;
	Fiber fibers[maxThreads];
	u32 ready; // fibers that have a stack
	u32 current, done, atBarrier;
	bool running; // a fiber, not the thread's own stack
	u32 atWarp[maxThreads / lanes];
	u32 firstAtBarrier, firstAtWarp[maxThreads / lanes]; // who came first of those who wait
	u8* room; // static arrays, then dynamic memory, each with a margin
	u8* dynamic;
	Array arrays[maxArrays];
	u32 arrayCount;
	size_t arrayBytes;
};

__thread __attribute__((tls_model("initial-exec"))) Machine* machine;
pthread_key_t machineKey;
pthread_once_t once = PTHREAD_ONCE_INIT;

constexpr size_t roomSize = staticLimit + (maxArrays + 1) * between + between + dynamicLimit + between;

void grow(void** list, u32* room, size_t size) {
	*room = *room ? 2 * *room : 16;
	*list = realloc(*list, *room * size);
	if (!*list) abort();
}

void forget(void* p) {
	Machine* m = (Machine*)p;
	for (u32 i = 0; i < m->ready; i++) {
		ASAN_UNPOISON_MEMORY_REGION(m->fibers[i].stack, stackSize);
		munmap(m->fibers[i].stack - pageSize, stackSize + pageSize);
		free(m->fibers[i].copies);
		free(m->fibers[i].groups);
	}
	ASAN_UNPOISON_MEMORY_REGION(m->room, roomSize);
	free(m->room);
	free(m);
}

Machine* theMachine() {
	pthread_once(&once, [] {
		if (pthread_key_create(&machineKey, forget)) abort();
	});
	if (!machine) {
		machine = (Machine*)calloc(1, sizeof(Machine));
		if (!machine || posix_memalign((void**)&machine->room, 128, roomSize)) abort();
		pthread_setspecific(machineKey, machine);
	}
	return machine;
}

// report says what is wrong, with the kernel and the block, if nothing was wrong before.
void report(Launch* l, const char* format, ...) __attribute__((format(printf, 2, 3)));
void report(Launch* l, const char* format, ...) {
	if (__atomic_exchange_n(&l->failed, true, __ATOMIC_ACQ_REL)) return;
	const int n = snprintf(l->error, l->errorSize, "kernel %s, block (%u,%u,%u), ", l->kernel->name, place.block.x, place.block.y, place.block.z);
	if (n < 0 || size_t(n) >= l->errorSize) return;
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(l->error + n, l->errorSize - n, format, arguments);
	va_end(arguments);
}

// leave goes back from a fiber to the thread's own stack. A fiber that is done does not come back.
void leave(Machine* m, Fiber& f, bool done) {
#ifdef ESTIBA_ASAN
	__sanitizer_start_switch_fiber(done ? nullptr : &f.fake, m->stackBottom, m->stackBytes);
#else
	(void)done;
#endif
	simSwitch(&f.stackPointer, m->stackPointer);
#ifdef ESTIBA_ASAN
	__sanitizer_finish_switch_fiber(f.fake, &m->stackBottom, &m->stackBytes);
#endif
}

// resume runs a fiber until it leaves.
void resume(Machine* m, u32 thread) {
	Fiber& f = m->fibers[thread];
	m->current = thread;
	place.thread.x = thread;
#ifdef ESTIBA_ASAN
	__sanitizer_start_switch_fiber(&m->fake, f.stack, stackSize);
#endif
	m->running = true;
	simSwitch(&m->stackPointer, f.stackPointer);
	m->running = false;
#ifdef ESTIBA_ASAN
	__sanitizer_finish_switch_fiber(m->fake, nullptr, nullptr);
#endif
}

[[noreturn]] void stop(Machine* m) {
	leave(m, m->fibers[m->current], true);
	abort();
}

void releaseBarrier(Machine* m) {
	m->atBarrier = 0;
	for (u32 i = 0; i < m->launch->threads; i++)
		if (m->fibers[i].state == State::AtBarrier) m->fibers[i].state = State::Ready;
}

void begin() {
	Machine* m = machine;
#ifdef ESTIBA_ASAN
	__sanitizer_finish_switch_fiber(nullptr, &m->stackBottom, &m->stackBytes);
#endif
	m->launch->kernel->run(m->launch->params);
	Fiber& f = m->fibers[m->current];
	f.state = State::Done;
	m->done++;
	if (m->atBarrier > 0 && m->atBarrier + m->done == m->launch->threads) releaseBarrier(m); // who has returned is not waited for
	stop(m);
}

bool prepare(Machine* m, u32 threads) {
	for (; m->ready < threads; m->ready++) {
		u8* p = (u8*)mmap(nullptr, stackSize + pageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p == MAP_FAILED) return false;
		mprotect(p, pageSize, PROT_NONE); // a stack that grows too far faults
		m->fibers[m->ready].stack = p + pageSize;
	}
	for (u32 i = 0; i < threads; i++) {
		Fiber& f = m->fibers[i];
		ASAN_UNPOISON_MEMORY_REGION(f.stack, stackSize);
		f.state = State::Ready;
		f.fake = nullptr;
		f.copyCount = f.groupCount = 0;
		void** top = (void**)(f.stack + stackSize - i % 64 * 320); // not all in the same lines of the cache
#if defined(__x86_64__)
		*--top = nullptr; // as if begin had been called: the stack is 8 off a multiple of 16
		*--top = (void*)begin;
		for (int r = 0; r < 6; r++) *--top = nullptr;
#else
		top -= 20;
		memset(top, 0, 160);
		top[11] = (void*)begin; // x30
#endif
		f.stackPointer = top;
	}
	return true;
}

// stuck says who waits for what.
void stuck(Machine* m) {
	Launch* l = m->launch;
	char text[512];
	size_t n = 0;
	u32 shown = 0;
	const Fiber* last = nullptr;
	for (u32 i = 0; i < l->threads && shown < 4; i++) {
		const Fiber& f = m->fibers[i];
		if (last && f.state == last->state && (f.state == State::Done || (f.op == last->op && f.at.line == last->at.line))) continue;
		last = &f;
		shown++;
		if (f.state == State::Done)
			n += snprintf(text + n, sizeof text - n, "%sthread %u has returned", n ? "; " : "", i);
		else
			n += snprintf(text + n, sizeof text - n, "%sthread %u waits in %s (%s:%d)", n ? "; " : "", i, names[u32(f.op)], f.at.file, f.at.line);
		if (n >= sizeof text) break;
	}
	report(l, "no thread can go on: %s", text);
}

// runBlock is false if the block broke a rule.
bool runBlock(Machine* m, Launch* l, u64 number) {
	m->launch = l;
	place.block = {u32(number % l->grid.x), u32(number / l->grid.x % l->grid.y), u32(number / l->grid.x / l->grid.y)};
	place.gridSize = l->grid;
	place.blockSize = {l->threads, 1, 1};
	place.thread = {0, 0, 0};
	if (!prepare(m, l->threads)) {
		report(l, "there is no memory for %u stacks", l->threads);
		return false;
	}
	m->done = m->atBarrier = 0;
	memset(m->atWarp, 0, sizeof m->atWarp);
	ASAN_UNPOISON_MEMORY_REGION(m->room, roomSize);
	m->arrayCount = 0;
	m->arrayBytes = 0;
	place.dynamic = m->dynamic = m->room + (roomSize - between - l->sharedBytes) / 128 * 128;
	memset(m->dynamic - between, untouched, between);
	memset(m->dynamic, unset, l->sharedBytes);
	memset(m->dynamic + l->sharedBytes, untouched, m->room + roomSize - (m->dynamic + l->sharedBytes));
	ASAN_POISON_MEMORY_REGION(m->dynamic - between, between);
	ASAN_POISON_MEMORY_REGION(m->dynamic + l->sharedBytes, m->room + roomSize - (m->dynamic + l->sharedBytes));

	const u32 warps = (l->threads + lanes - 1) / lanes;
	while (m->done < l->threads) {
		bool ran = false;
		if (l->schedule == Schedule::InOrder) {
			for (u32 i = 0; i < l->threads; i++) {
				if (m->fibers[i].state != State::Ready) continue;
				ran = true;
				resume(m, i);
				if (__atomic_load_n(&l->failed, __ATOMIC_ACQUIRE)) return false;
			}
		} else {
			for (u32 w = warps; w-- > 0;) {
				bool again = true;
				while (again) {
					again = false;
					for (u32 i = (w + 1) * lanes < l->threads ? (w + 1) * lanes : l->threads; i-- > w * lanes;) {
						if (m->fibers[i].state != State::Ready) continue;
						ran = again = true;
						resume(m, i);
						if (__atomic_load_n(&l->failed, __ATOMIC_ACQUIRE)) return false;
					}
				}
			}
		}
		if (!ran) {
			stuck(m);
			return false;
		}
	}

#ifndef ESTIBA_ASAN // which has said it already
	for (u32 i = 0; i < m->arrayCount; i++) {
		const Array& a = m->arrays[i];
		for (const u8* p = a.at + a.bytes; p < a.at + a.bytes + between; p++)
			if (*p != untouched) {
				report(l, "wrote beyond the end of shared array %s", a.name);
				return false;
			}
	}
	for (size_t i = 0; i < between; i++)
		if (m->dynamic[l->sharedBytes + i] != untouched || *(m->dynamic - 1 - i) != untouched) {
			report(l, "wrote outside the %u bytes of dynamic shared memory", l->sharedBytes);
			return false;
		}
#endif
	return true;
}

void runBlocks(Launch* l) {
	Machine* m = theMachine();
	for (;;) {
		const u64 i = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
		if (i >= l->total || __atomic_load_n(&l->failed, __ATOMIC_ACQUIRE)) return;
		if (!runBlock(m, l, l->schedule == Schedule::InOrder ? i : l->total - 1 - i)) return;
	}
}

// Workers help with launches that have many blocks.
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t wanted = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
Launch* open; // launches with blocks to run
int workers;

void* work(void*) {
	pthread_mutex_lock(&lock);
	for (;;) {
		Launch* l = open;
		while (l && __atomic_load_n(&l->next, __ATOMIC_RELAXED) >= l->total) l = l->after;
		if (!l) {
			pthread_cond_wait(&wanted, &lock);
			continue;
		}
		l->busy++;
		pthread_mutex_unlock(&lock);
		runBlocks(l);
		pthread_mutex_lock(&lock);
		if (--l->busy == 0) pthread_cond_broadcast(&finished);
	}
	return nullptr;
}

// startWorkers has so many, who take no signals but for faults: others are for the program's own threads. The lock is held.
void startWorkers(int n) {
	sigset_t all, before;
	sigfillset(&all);
	sigdelset(&all, SIGSEGV); // a fault that is masked ends the process
	sigdelset(&all, SIGBUS);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (; workers < n; workers++) {
		pthread_t t;
		if (pthread_create(&t, nullptr, work, nullptr)) break;
		pthread_detach(t);
	}
	pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

bool inShared(const Machine* m, const void* p, size_t bytes) {
	const u8* at = (const u8*)p;
	if (at >= m->dynamic && at + bytes <= m->dynamic + m->launch->sharedBytes) return true;
	for (u32 i = 0; i < m->arrayCount; i++)
		if (at >= m->arrays[i].at && at + bytes <= m->arrays[i].at + m->arrays[i].bytes) return true;
	return false;
}

// broken ends a thread that broke a rule, and with it the launch.
[[noreturn]] void broken(Machine* m, u32 thread, At at, const char* what) {
	report(m->launch, "thread %u (%s:%d): %s", thread, at.file, at.line, what);
	stop(m);
}

// matrices loads 8x8 matrices, two or four.
void matrices(Machine* m, u32 first, u32 count, bool transposed) {
	const u16* rows[lanes] = {};
	for (u32 i = 0; i < 8 * count; i++) {
		const Fiber& f = m->fibers[first + i];
		if (uintptr_t(f.a) % 16) broken(m, first + i, f.at, "ldmatrix of a row that is at no multiple of 16 bytes");
		if (!inShared(m, f.a, 16)) broken(m, first + i, f.at, "ldmatrix of a row outside shared memory");
		rows[i] = (const u16*)f.a;
	}
	for (u32 i = 0; i < lanes; i++) {
		const u32 row = i / 4, column = i % 4 * 2;
		for (u32 j = 0; j < count; j++) {
			const u16* const* matrix = rows + 8 * j;
			((u32*)m->fibers[first + i].out)[j] = transposed ? matrix[column][row] | u32(matrix[column + 1][row]) << 16
			                                                 : matrix[row][column] | u32(matrix[row][column + 1]) << 16;
		}
	}
}

// multiply is mma: d [16,8] += a [16,16] b [16,8], with two numbers in a register. Products are exact, and the sum is rounded
// once; devices round a little more often.
template <typename Decode> void multiply(Machine* m, u32 first, Decode decode) {
	constexpr u32 perRegister = 2, k = 8 * perRegister;
	f32 a[16][k], b[k][8];
	for (u32 i = 0; i < lanes; i++) {
		const u32 *x = (const u32*)m->fibers[first + i].a, *y = (const u32*)m->fibers[first + i].b;
		const u32 g = i / 4, t = i % 4 * perRegister;
		for (u32 r = 0; r < 4; r++)
			for (u32 e = 0; e < perRegister; e++) a[g + r % 2 * 8][t + r / 2 * (k / 2) + e] = decode(x[r], e);
		for (u32 r = 0; r < 2; r++)
			for (u32 e = 0; e < perRegister; e++) b[t + r * (k / 2) + e][g] = decode(y[r], e);
	}
	f64 d[16][8] = {};
	for (u32 row = 0; row < 16; row++)
		for (u32 e = 0; e < k; e++)
			for (u32 column = 0; column < 8; column++) d[row][column] += f64(a[row][e]) * f64(b[e][column]);
	for (u32 i = 0; i < lanes; i++) {
		f32* out = (f32*)m->fibers[first + i].out;
		for (u32 r = 0; r < 4; r++) out[r] = f32(f64(out[r]) + d[i / 4 + r / 2 * 8][i % 4 * 2 + r % 2]);
	}
}

// together does what a warp met for.
void together(Machine* m, u32 first) {
	Fiber* f = m->fibers + first;
	u32 values[lanes];
	const Op op = f[0].op;
	switch (op) {
	case Op::Barrier:
	case Op::WarpBarrier:
		break;
	case Op::ShuffleXor:
	case Op::ShuffleDown:
	case Op::Shuffle:
		for (u32 i = 0; i < lanes; i++) memcpy(&values[i], f[i].a, 4);
		for (u32 i = 0; i < lanes; i++) {
			const u32 n = f[i].argument;
			u32 from = op == Op::ShuffleXor ? i ^ n : op == Op::ShuffleDown ? i + n : n % lanes;
			if (from >= lanes) from = i;
			memcpy(f[i].out, &values[from], 4);
		}
		break;
	case Op::Ballot: {
		u32 bits = 0;
		for (u32 i = 0; i < lanes; i++) bits |= u32(f[i].argument != 0) << i;
		for (u32 i = 0; i < lanes; i++) memcpy(f[i].out, &bits, 4);
		break;
	}
	case Op::LdMatrix4:
	case Op::LdMatrix4T:
		matrices(m, first, 4, op == Op::LdMatrix4T);
		break;
	case Op::LdMatrix2:
		matrices(m, first, 2, false);
		break;
	case Op::MmaBF16:
		multiply(m, first, [](u32 v, u32 e) { return fromBF16(u16(v >> 16 * e)); });
		break;
	case Op::MmaF16:
		multiply(m, first, [](u32 v, u32 e) { return fromHalf(u16(v >> 16 * e)); });
		break;
	}
}

void doCopy(const Copy& c) {
	if (c.valid)
		memcpy(c.to, c.from, 16);
	else
		memset(c.to, 0, 16);
}

} // namespace

void meet(Op op, At at, void* out, const void* a, const void* b, u32 argument) {
	Machine* m = machine;
	const u32 thread = m->current, threads = m->launch->threads;
	Fiber& f = m->fibers[thread];
	f.op = op;
	f.at = at;
	f.out = out;
	f.a = a;
	f.b = b;
	f.argument = argument;
	const bool block = op == Op::Barrier;
	const u32 first = block ? 0 : thread / lanes * lanes, end = block ? threads : first + lanes;
	if (end > threads) broken(m, thread, at, "the warp has fewer than 32 threads");
	const State waiting = block ? State::AtBarrier : State::AtWarp;
	u32& here = block ? m->atBarrier : m->atWarp[first / lanes];
	u32& earliest = block ? m->firstAtBarrier : m->firstAtWarp[first / lanes];
	if (here++ == 0) earliest = thread;
	const Fiber& other = m->fibers[earliest];
	if (other.op != op || other.at.line != at.line) {
		char what[300];
		snprintf(what, sizeof what, "%s, while thread %u waits in %s (%s:%d): threads that must meet are in different places", names[u32(op)], earliest, names[u32(other.op)],
		         other.at.file, other.at.line);
		broken(m, thread, at, what);
	}
	f.state = waiting;
	if (block ? here + m->done < threads : here < lanes) {
		leave(m, f, false);
		return;
	}
	if (block) {
		releaseBarrier(m);
		return;
	}
	here = 0;
	together(m, first);
	for (u32 i = first; i < end; i++) m->fibers[i].state = State::Ready;
}

void* shared(const void* key, size_t bytes, const char* name) {
	Machine* m = machine;
	for (u32 i = 0; i < m->arrayCount; i++)
		if (m->arrays[i].key == key) return m->arrays[i].at;
	const At nowhere = {name, 0};
	m->arrayBytes += (bytes + 15) / 16 * 16;
	if (m->arrayCount == maxArrays || m->arrayBytes > staticLimit) broken(m, m->current, nowhere, "the kernel's shared arrays are larger than 48 KiB");
	u8* at = m->room + between;
	if (m->arrayCount > 0) {
		const Array& last = m->arrays[m->arrayCount - 1];
		at = last.at + (last.bytes + 15) / 16 * 16 + between;
	}
	if (at + bytes + between > m->dynamic - between) broken(m, m->current, nowhere, "static and dynamic shared memory are larger than a device's");
	m->arrays[m->arrayCount++] = {key, name, at, bytes};
	memset(at, unset, bytes);
	memset(at + bytes, untouched, between);
	ASAN_POISON_MEMORY_REGION(at + bytes, between);
	return at;
}

void copy(void* to, const void* from, bool valid, At at) {
	Machine* m = machine;
	if (uintptr_t(to) % 16 || uintptr_t(from) % 16) broken(m, m->current, at, "copyAsync16 with an address that is no multiple of 16");
	if (!inShared(m, to, 16)) broken(m, m->current, at, "copyAsync16 to what is not shared memory");
	Fiber& f = m->fibers[m->current];
	if (f.copyCount == f.copyRoom) grow((void**)&f.copies, &f.copyRoom, sizeof(Copy));
	f.copies[f.copyCount] = {to, from, valid};
	if (m->launch->schedule == Schedule::Greedy) doCopy(f.copies[f.copyCount]);
	f.copyCount++;
}

void commit() {
	Fiber& f = machine->fibers[machine->current];
	if (f.groupCount == f.groupRoom) grow((void**)&f.groups, &f.groupRoom, sizeof(u32));
	f.groups[f.groupCount++] = f.copyCount;
}

void wait(u32 groups) {
	Machine* m = machine;
	Fiber& f = m->fibers[m->current];
	if (f.groupCount <= groups) return;
	const u32 gone = f.groupCount - groups, copied = f.groups[gone - 1];
	if (m->launch->schedule == Schedule::InOrder)
		for (u32 i = 0; i < copied; i++) doCopy(f.copies[i]);
	memmove(f.copies, f.copies + copied, (f.copyCount - copied) * sizeof(Copy));
	f.copyCount -= copied;
	memmove(f.groups, f.groups + gone, groups * sizeof(u32));
	f.groupCount = groups;
	for (u32 i = 0; i < groups; i++) f.groups[i] -= copied;
}

void aligned(const void* p, u32 n, const char* what, At at) {
	if (uintptr_t(p) % n == 0) return;
	char text[100];
	snprintf(text, sizeof text, "%s of an address that is no multiple of %u", what, n);
	broken(machine, machine->current, at, text);
}

bool fault(const void* address) {
	Machine* m = machine;
	if (!m || !m->running) return false;
	report(m->launch, "thread %u: illegal address %p", m->current, address);
	stop(m);
}

void forbid(void* p, size_t bytes) { ASAN_POISON_MEMORY_REGION(p, bytes); }
void allow(void* p, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(p, bytes); }

Registered::Registered(const char* n, uint32_t size, uint32_t t, void (*r)(const void*)) : KernelEntry{n, size, t, r, kernels} {
	if (findKernel(n)) {
		fprintf(stderr, "emulator: two kernels are named %s\n", n);
		abort();
	}
	kernels = this;
}

const KernelEntry* firstKernel() { return kernels; }

const KernelEntry* findKernel(const char* name) {
	for (const KernelEntry* k = kernels; k; k = k->next)
		if (!strcmp(k->name, name)) return k;
	return nullptr;
}

void configure(Schedule s, int n) {
	__atomic_store_n(&configuredSchedule, int(s), __ATOMIC_RELAXED);
	__atomic_store_n(&configuredWorkers, n, __ATOMIC_RELAXED);
}

bool runKernel(const KernelEntry* k, const uint32_t grid[3], uint32_t threads, uint32_t sharedBytes, const void* params, char* error, size_t size) {
	if (threads == 0 || threads > k->threads || threads > maxThreads || sharedBytes > dynamicLimit || !grid[0] || !grid[1] || !grid[2]) {
		snprintf(error, size, "kernel %s: a launch of %u x %u x %u blocks of %u threads with %u bytes of shared memory; the kernel is for at most %u threads and a device for %zu bytes", k->name,
		         grid[0], grid[1], grid[2], threads, sharedBytes, k->threads, dynamicLimit);
		return false;
	}
	alignas(16) u8 own[4096]; // a device has a copy too
	if (k->paramsSize > sizeof own) {
		snprintf(error, size, "kernel %s: %u bytes of parameters; a device takes 4096", k->name, k->paramsSize);
		return false;
	}
	memcpy(own, params, k->paramsSize);
	Launch l = {};
	l.kernel = k;
	l.grid = {grid[0], grid[1], grid[2]};
	l.threads = threads;
	l.sharedBytes = sharedBytes;
	l.params = own;
	l.schedule = Schedule(__atomic_load_n(&configuredSchedule, __ATOMIC_RELAXED));
	l.total = u64(grid[0]) * grid[1] * grid[2];
	l.error = error;
	l.errorSize = size;
	int most = __atomic_load_n(&configuredWorkers, __ATOMIC_RELAXED);
	if (most == 0) {
		cpu_set_t set;
		most = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
	}
	if (most == 1 || l.total * threads < 512) { // waking others would take longer
		runBlocks(&l);
		return !l.failed;
	}
	pthread_mutex_lock(&lock);
	startWorkers(most - 1);
	l.after = open;
	open = &l;
	pthread_cond_broadcast(&wanted);
	pthread_mutex_unlock(&lock);
	runBlocks(&l);
	pthread_mutex_lock(&lock);
	Launch** at = &open;
	while (*at != &l) at = &(*at)->after;
	*at = l.after;
	while (l.busy > 0) pthread_cond_wait(&finished, &lock);
	pthread_mutex_unlock(&lock);
	return !l.failed;
}

} // namespace sim
