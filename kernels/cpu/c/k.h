// Panels of the formats whose blocks have 256 columns; k.go describes them.
#pragma once
#include "vec.h"

enum format { Q4K, Q5K, Q6K };

// After a HEADER there are UNITS of 64 columns: SCALES, then two groups.
enum { UNITS = 4, HEADER = 64, SCALES = 64 };
INLINE int groupSize(enum format f) { return f == Q4K ? 256 : f == Q5K ? 320 : 384; }
INLINE int unitSize(enum format f) { return SCALES + 2 * groupSize(f); }
INLINE int blockSize(enum format f) { return HEADER + UNITS * unitSize(f); }
