// libnvml.c: a libnvidia-ml.so.1 of devices that are not there, for the tests of runtime/device. It has the
// functions that runtime/device calls, with NVML's names and layouts, and answers from the file that
// ESTIBA_EMULATED_NVML names, which it reads again at each call. A line is a word and key=value pairs, an
// underscore in a name is a space, numbers are as NVML gives them (bytes, milliwatts, millijoules), and what
// is left out is not supported:
//
//   init return=9                          nvmlInit fails
//   gpu uuid=GPU-1 name=NVIDIA_A100 total= reserved= free= util= power= limit= energy= temp= throttle= ecc= pending= failed= events=
//       lost=1: each call says that it is lost; hidden=1: it has no handle, as when another container has it; mig=1: split
//   mig gpu=0 slot=0 uuid=MIG-1 name= gi=1 ci=0 total= reserved= free=
//   process gpu=0 pid=4711 bytes=          pid=self is the process that asks; mig=0: it is in that slot
//   event gpu=0 type=8 data=79 gi= ci=     sent to the sets that were there before the line was
//   fail function=nvmlDeviceGetPowerUsage return=4
//
// With OLD_DRIVER it is what a library of an older driver is: whatever came later is missing, which is
// found only when it is called.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef uint32_t u32;
typedef uint64_t u64;
typedef struct { void *handle; } Device; // passed by value
typedef struct { void *handle; } EventSet;
typedef struct { u64 total, free, used; } Memory;
typedef struct { u32 version; u64 total, reserved, free, used; } Memory2;
typedef struct { u32 gpu, memory; } Utilization;
typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { u32 pid; u64 bytes; } Process1;
typedef struct { u32 pid; u64 bytes; u32 gi, ci; } Process2;
typedef struct { Device device; u64 type, data; u32 gi, ci; } EventData;

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, LOST = 15 };
enum { GPUS = 16, SLOTS = 7, LINES = 256 };
static const u32 none = 0xFFFFFFFF;

typedef struct {
	char word[16], text[1000];
} Line;
typedef struct {
	Line line[LINES];
	int lines;
} State;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int initialized;
static char handles[GPUS][1 + SLOTS]; // [gpu][0] is the GPU, [gpu][1 + slot] an instance; only addresses count

static void read_state(State *s) {
	s->lines = 0;
	const char *path = getenv("ESTIBA_EMULATED_NVML");
	FILE *f = path ? fopen(path, "r") : NULL;
	if (!f)
		return;
	char buffer[1024];
	while (s->lines < LINES && fgets(buffer, sizeof buffer, f)) {
		Line *l = &s->line[s->lines];
		l->text[0] = 0;
		if (sscanf(buffer, "%15s %999[^\n]", l->word, l->text) >= 1 && l->word[0] != '#')
			s->lines++;
	}
	fclose(f);
}

// value finds a key's value in a line; 0 if it is not there.
static int value(const Line *l, const char *key, char *out, size_t size) {
	size_t n = strlen(key);
	for (const char *p = l->text; *p;) {
		while (*p == ' ')
			p++;
		size_t length = strcspn(p, " ");
		if (length > n && !strncmp(p, key, n) && p[n] == '=') {
			snprintf(out, size, "%.*s", (int)(length - n - 1), p + n + 1);
			return 1;
		}
		p += length;
	}
	return 0;
}

static int64_t number(const Line *l, const char *key, int64_t otherwise) {
	char text[64];
	if (!value(l, key, text, sizeof text) || !*text)
		return otherwise;
	return !strcmp(text, "self") ? getpid() : (int64_t)strtoull(text, NULL, 0);
}

// nth is the nth line that begins with a word; NULL if there are fewer.
static const Line *nth(const State *s, const char *word, int n) {
	for (int i = 0; i < s->lines; i++)
		if (!strcmp(s->line[i].word, word) && n-- == 0)
			return &s->line[i];
	return NULL;
}

// fails is what the file says that a function returns.
static int fails(const State *s, const char *function) {
	const Line *l;
	for (int i = 0; (l = nth(s, "fail", i)); i++) {
		char name[64];
		if (value(l, "function", name, sizeof name) && !strcmp(name, function))
			return (int)number(l, "return", 999);
	}
	return SUCCESS;
}

// where finds the GPU and the slot of a handle; slot -1 is the GPU.
static int where(Device d, int *gpu, int *slot) {
	long at = (char *)d.handle - &handles[0][0];
	if (!d.handle || at < 0 || at >= (long)sizeof handles)
		return INVALID;
	*gpu = (int)(at / (1 + SLOTS)), *slot = (int)(at % (1 + SLOTS)) - 1;
	return SUCCESS;
}

// line_of is the line of a device, and what a call of function with it returns before it does anything.
static int line_of(State *s, Device d, const char *function, const Line **line, int *gpu, int *slot) {
	pthread_mutex_lock(&lock);
	int is = initialized;
	pthread_mutex_unlock(&lock);
	if (!is)
		return UNINITIALIZED;
	read_state(s);
	int r = where(d, gpu, slot);
	if (r)
		return r;
	const Line *whole = nth(s, "gpu", *gpu);
	if (!whole)
		return INVALID;
	if (number(whole, "lost", 0))
		return LOST;
	if ((r = fails(s, function)))
		return r;
	*line = whole;
	if (*slot < 0)
		return SUCCESS;
	for (int i = 0; (*line = nth(s, "mig", i)); i++)
		if (number(*line, "gpu", 0) == *gpu && number(*line, "slot", 0) == *slot)
			return SUCCESS;
	return NOT_FOUND;
}

#define BEGIN(d)                                                                                                                                    \
	State *s = malloc(sizeof *s);                                                                                                                     \
	const Line *line = NULL;                                                                                                                           \
	int gpu = 0, slot = 0, r = line_of(s, d, __func__, &line, &gpu, &slot);                                                                           \
	(void)gpu, (void)slot, (void)line;
#define END                                                                                                                                          \
	free(s);                                                                                                                                           \
	return r;

// NUMBER is a function that gives one number of the file. Instances do not tell it.
#define NUMBER(function, type, key)                                                                                                                  \
	int function(Device d, type *out) {                                                                                                                \
		BEGIN(d)                                                                                                                                          \
		if (!r) {                                                                                                                                         \
			int64_t n = number(line, key, -1);                                                                                                               \
			if (slot >= 0 || n < 0)                                                                                                                          \
				r = NOT_SUPPORTED;                                                                                                                              \
			else                                                                                                                                             \
				*out = (type)n;                                                                                                                                 \
		}                                                                                                                                                 \
		END                                                                                                                                               \
	}

static int init(void) {
	State *s = malloc(sizeof *s);
	read_state(s);
	const Line *l = nth(s, "init", 0);
	int r = l ? (int)number(l, "return", 0) : SUCCESS;
	free(s);
	pthread_mutex_lock(&lock);
	initialized += !r;
	pthread_mutex_unlock(&lock);
	return r;
}

int nvmlShutdown(void) {
	pthread_mutex_lock(&lock);
	int r = initialized ? SUCCESS : UNINITIALIZED;
	initialized -= !r;
	pthread_mutex_unlock(&lock);
	return r;
}

static int count(u32 *n) {
	State *s = malloc(sizeof *s);
	read_state(s);
	for (*n = 0; *n < GPUS && nth(s, "gpu", (int)*n); ++*n)
		;
	free(s);
	return initialized ? SUCCESS : UNINITIALIZED;
}

static int by_index(u32 i, Device *d) {
	if (i >= GPUS)
		return INVALID;
	State *s = malloc(sizeof *s);
	read_state(s);
	const Line *l = nth(s, "gpu", (int)i);
	int r = !initialized ? UNINITIALIZED : !l ? INVALID : number(l, "hidden", 0) ? NO_PERMISSION : number(l, "lost", 0) ? LOST : SUCCESS;
	free(s);
	d->handle = &handles[i][0];
	return r;
}

static int text(Device d, const char *function, const char *key, char *out, u32 size) {
	State *s = malloc(sizeof *s);
	const Line *line = NULL;
	int gpu, slot, r = line_of(s, d, function, &line, &gpu, &slot);
	if (!r && !value(line, key, out, size))
		r = NOT_SUPPORTED;
	for (char *p = out; !r && *p; p++)
		if (*p == '_')
			*p = ' ';
	free(s);
	return r;
}

int nvmlDeviceGetUUID(Device d, char *out, u32 size) { return text(d, __func__, "uuid", out, size); }
int nvmlDeviceGetName(Device d, char *out, u32 size) { return text(d, __func__, "name", out, size); }

int nvmlDeviceGetPciInfo_v3(Device d, Pci *out) {
	BEGIN(d)
	if (!r) {
		memset(out, 0, sizeof *out);
		out->bus = 0x3B + (u32)gpu;
	}
	END
}

int nvmlDeviceGetMemoryInfo(Device d, Memory *out) {
	BEGIN(d)
	if (!r) { // what is reserved counts as used
		out->total = (u64)number(line, "total", 0), out->free = (u64)number(line, "free", 0);
		out->used = out->total - out->free;
	}
	END
}

NUMBER(nvmlDeviceGetPowerUsage, u32, "power")

int nvmlDeviceGetUtilizationRates(Device d, Utilization *out) {
	BEGIN(d)
	if (!r) {
		int64_t n = number(line, "util", -1);
		if (slot >= 0 || n < 0)
			r = NOT_SUPPORTED;
		else
			out->gpu = (u32)n, out->memory = 0;
	}
	END
}

int nvmlDeviceGetTemperature(Device d, u32 sensor, u32 *out) {
	BEGIN(d)
	if (!r) {
		int64_t n = number(line, "temp", -1);
		if (sensor || slot >= 0 || n < 0)
			r = NOT_SUPPORTED;
		else
			*out = (u32)n;
	}
	END
}

NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, u64, "throttle")
NUMBER(nvmlDeviceGetSupportedEventTypes, u64, "events")

// processes fills what has room, and says how many there are.
static int processes(Device d, const char *function, u32 *n, Process1 *one, Process2 *two) {
	State *s = malloc(sizeof *s);
	const Line *line = NULL, *p;
	int gpu, slot, r = line_of(s, d, function, &line, &gpu, &slot);
	u32 room = *n;
	*n = 0;
	for (int i = 0; !r && (p = nth(s, "process", i)); i++) {
		if (number(p, "gpu", 0) != gpu || (slot >= 0 && number(p, "mig", -1) != slot))
			continue;
		u32 pid = (u32)number(p, "pid", 0);
		u64 bytes = (u64)number(p, "bytes", -1);
		if (*n < room && one)
			one[*n] = (Process1){pid, bytes};
		if (*n < room && two)
			two[*n] = (Process2){pid, bytes, none, none};
		++*n;
	}
	if (!r && *n > room)
		r = INSUFFICIENT_SIZE;
	free(s);
	return r;
}

int nvmlDeviceGetComputeRunningProcesses(Device d, u32 *n, Process1 *out) { return processes(d, __func__, n, out, NULL); }

// Events: a set begins with those that are in the file when it is made.
typedef struct {
	int seen;
	u64 types[GPUS];
} Set;

static int events_in(const State *s) {
	int n = 0;
	while (nth(s, "event", n))
		n++;
	return n;
}

int nvmlEventSetCreate(EventSet *out) {
	State *s = malloc(sizeof *s);
	read_state(s);
	Set *set = calloc(1, sizeof *set);
	set->seen = events_in(s);
	out->handle = set;
	free(s);
	return initialized ? SUCCESS : UNINITIALIZED;
}

int nvmlEventSetFree(EventSet set) {
	free(set.handle);
	return SUCCESS;
}

int nvmlDeviceRegisterEvents(Device d, u64 types, EventSet set) {
	BEGIN(d)
	if (!r)
		((Set *)set.handle)->types[gpu] |= types;
	END
}

static int wait_for(EventSet handle, EventData *out, u32 timeout) {
	Set *set = handle.handle;
	State *s = malloc(sizeof *s);
	int r = TIMEOUT;
	for (u32 waited = 0; r == TIMEOUT; waited += 5) {
		read_state(s);
		const Line *l;
		while ((l = nth(s, "event", set->seen))) {
			set->seen++;
			int64_t gpu = number(l, "gpu", 0), type = number(l, "type", 8);
			if (gpu >= GPUS || !(set->types[gpu] & (u64)type))
				continue;
			*out = (EventData){{&handles[gpu][0]}, (u64)type, (u64)number(l, "data", 0), (u32)number(l, "gi", none), (u32)number(l, "ci", none)};
			r = SUCCESS;
			break;
		}
		if (r == SUCCESS || waited >= timeout)
			break;
		nanosleep(&(struct timespec){0, 5000000}, NULL);
	}
	free(s);
	return r;
}

#ifdef OLD_DRIVER

int nvmlInit(void) { return init(); }
int nvmlDeviceGetCount(u32 *n) { return count(n); }
int nvmlDeviceGetHandleByIndex(u32 i, Device *d) { return by_index(i, d); }
int nvmlEventSetWait(EventSet set, EventData *out, u32 timeout) { return wait_for(set, out, timeout); }

#else

int nvmlInit_v2(void) { return init(); }
int nvmlDeviceGetCount_v2(u32 *n) { return count(n); }
int nvmlDeviceGetHandleByIndex_v2(u32 i, Device *d) { return by_index(i, d); }
int nvmlEventSetWait_v2(EventSet set, EventData *out, u32 timeout) { return wait_for(set, out, timeout); }
int nvmlDeviceGetComputeRunningProcesses_v3(Device d, u32 *n, Process2 *out) { return processes(d, __func__, n, NULL, out); }
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, u64, "throttle")
NUMBER(nvmlDeviceGetTotalEnergyConsumption, u64, "energy")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, u32, "limit")

const char *nvmlErrorString(int r) {
	switch (r) {
	case UNINITIALIZED: return "Uninitialized";
	case NOT_SUPPORTED: return "Not Supported";
	case NO_PERMISSION: return "Insufficient Permissions";
	case LOST: return "GPU is lost";
	}
	return "Unknown Error";
}

int nvmlDeviceGetMemoryInfo_v2(Device d, Memory2 *out) {
	BEGIN(d)
	if (!r && out->version != (sizeof *out | 2u << 24))
		r = 25; // NVML_ERROR_ARGUMENT_VERSION_MISMATCH
	if (!r) {
		out->total = (u64)number(line, "total", 0), out->free = (u64)number(line, "free", 0), out->reserved = (u64)number(line, "reserved", 0);
		out->used = out->total - out->free - out->reserved;
	}
	END
}

int nvmlDeviceGetTotalEccErrors(Device d, u32 type, u32 counter, u64 *out) {
	BEGIN(d)
	if (!r) {
		int64_t n = number(line, "ecc", -1);
		if (type != 1 || counter != 0 || n < 0)
			r = NOT_SUPPORTED;
		else
			*out = (u64)n;
	}
	END
}

int nvmlDeviceGetRemappedRows(Device d, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed) {
	BEGIN(d)
	if (!r) {
		*corrected = 0, *uncorrected = 0;
		*pending = (u32)number(line, "pending", 0), *failed = (u32)number(line, "failed", 0);
	}
	END
}

int nvmlDeviceGetMigMode(Device d, u32 *now, u32 *later) {
	BEGIN(d)
	if (!r) {
		int64_t mode = number(line, "mig", -1);
		if (mode < 0)
			r = NOT_SUPPORTED;
		*now = *later = (u32)mode;
	}
	END
}

int nvmlDeviceGetMaxMigDeviceCount(Device d, u32 *n) {
	BEGIN(d)
	*n = SLOTS;
	END
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device d, u32 i, Device *out) {
	BEGIN(d)
	if (!r && i >= SLOTS)
		r = INVALID;
	free(s);
	if (r)
		return r;
	Device instance = {&handles[gpu][1 + i]};
	State *again = malloc(sizeof *again);
	r = line_of(again, instance, __func__, &line, &gpu, &slot);
	free(again);
	*out = instance;
	return r;
}

static int of_instance(Device d, const char *function, const char *key, u32 *out) {
	State *s = malloc(sizeof *s);
	const Line *line = NULL;
	int gpu, slot, r = line_of(s, d, function, &line, &gpu, &slot);
	if (!r && slot < 0)
		r = NOT_FOUND;
	if (!r)
		*out = (u32)number(line, key, 0);
	free(s);
	return r;
}

int nvmlDeviceGetGpuInstanceId(Device d, u32 *out) { return of_instance(d, __func__, "gi", out); }
int nvmlDeviceGetComputeInstanceId(Device d, u32 *out) { return of_instance(d, __func__, "ci", out); }

#endif
