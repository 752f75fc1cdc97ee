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

// UNITS of 64 columns follow a HEADER and, in Q5_K, the FIFTHS; each begins with its scales, so long.
enum { UNITS = 4, HEADER = 64, FIFTHS = 512, SCALES = 64 };
INLINE int unit_bytes(enum format f) { return f == Q6K ? SCALES + 256 + 512 : SCALES + 512; }
INLINE int units_at(enum format f) { return f == Q5K ? HEADER + FIFTHS : HEADER; }
INLINE int block_bytes(enum format f) { return units_at(f) + UNITS * unit_bytes(f); }
