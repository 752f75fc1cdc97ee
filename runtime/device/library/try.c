//go:build cuda && cgo

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include "try.h"

static int report;

static void say(const char *text) {
	if (write(report, text, strlen(text)) < 0) _exit(LIBRARY_REFUSED);
}

// ended tells which files are mapped: of the library, the one that was found.
static void ended(int signal) {
	char b[4096];
	ssize_t n;
	for (int maps = open("/proc/self/maps", O_RDONLY); maps >= 0 && (n = read(maps, b, sizeof b)) > 0;)
		if (write(report, b, (size_t)n) < 0) break;
	_exit(LIBRARY_SIGNAL + signal);
}

// The child has this thread alone. glibc keeps what dlopen and malloc need in order across a fork; nothing of Go's runs.
pid_t estiba_library_try(const char *name, char **initialize, int n, int out) {
	void *loaded = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
	if (loaded) { // it did no harm, and a child would wait for ever for what another thread has locked in it
		dlclose(loaded);
		return 0;
	}
	pid_t child = fork();
	if (child != 0) return child;
	report = out;
	const int fatal[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
	for (int s = 1; s < NSIG; s++) signal(s, SIG_DFL); // Go's handlers would look for a goroutine
	for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++) signal(fatal[i], ended);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	int null = open("/dev/null", O_RDWR); // what the library says is said when it is loaded in earnest
	for (int fd = 0; null >= 0 && fd <= 2; fd++) dup2(null, fd);

	void *library = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
	if (!library) {
		const char *why = dlerror();
		say(why ? why : "it cannot be opened");
		_exit(LIBRARY_REFUSED);
	}
	int (*start)(unsigned int) = NULL;
	for (int i = 0; i < n && !start; i++) start = (int (*)(unsigned int))dlsym(library, initialize[i]);
	if (!start) {
		struct link_map *found = NULL;
		say(!dlinfo(library, RTLD_DI_LINKMAP, &found) && found ? found->l_name : name);
		say(" is not the library that its name says, as it lacks "), say(initialize[0]);
		_exit(LIBRARY_REFUSED);
	}
	start(0); // what it returns is asked for in earnest
	_exit(0);
}
