#ifndef ESTIBA_LIBRARY_TRY_H
#define ESTIBA_LIBRARY_TRY_H

#include <sys/types.h>

// How the child ends, else than with 0.
#define LIBRARY_REFUSED 113 // and its report says why
#define LIBRARY_SIGNAL 128  // and a signal's number; its report is what was mapped

// estiba_library_try begins the trial in a child, which reports to out. It is 0 where this process has the library
// already. initialize are n names, of which it calls the first that is there.
pid_t estiba_library_try(const char *name, char **initialize, int n, int out);

#endif
