// variants: avx2 avx512
#include "vec.h"

// read is readArgs of read.go.
struct read {
	const uint8_t *data;
	int64_t n; // bytes, a multiple of 256
	uint64_t sum;
};

void readBytes(struct read *r) {
	typedef uint64_t words __attribute__((vector_size(64), aligned(1)));
	words s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
	for (int64_t i = 0; i < r->n; i += 256) {
		const words *p = (const words *)(r->data + i);
		s0 ^= p[0], s1 ^= p[1], s2 ^= p[2], s3 ^= p[3];
	}
	s0 ^= s1 ^ s2 ^ s3;
	r->sum = s0[0] ^ s0[1] ^ s0[2] ^ s0[3] ^ s0[4] ^ s0[5] ^ s0[6] ^ s0[7];
}
