// Panels of the formats whose blocks have 256 columns; k.go describes them.
#pragma once
#include "quant.h"

// WHOLE_BYTES says that products of bytes up to 240 are summed without a stop at 16 bits.
#ifdef PATH_AVX512
enum { WHOLE_BYTES = 1 };
#else
enum { WHOLE_BYTES = 0 };
#endif

enum format { Q4K, Q5K, Q6K };

// After a HEADER there are UNITS of 64 columns: SCALES, then two groups.
enum { UNITS = 4, HEADER = 64, SCALES = 64 };
INLINE int group_size(enum format f) { return f == Q4K ? 256 : f == Q5K ? 320 : 384; }
INLINE int unit_size(enum format f) { return SCALES + 2 * group_size(f); }
INLINE int block_size(enum format f) { return HEADER + UNITS * unit_size(f); }
