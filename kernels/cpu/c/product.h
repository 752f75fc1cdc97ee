// A product of rows of activations by panels of weights.
#pragma once
#include "vec.h"

// product is productArgs of product.go.
struct product {
	float *y;
	int64_t stride;     // row i goes to y + i*stride
	const int64_t *yAt; // or, if not null, to y + yAt[i]
	const uint8_t *x;
	int64_t xBytes;      // of a row of x
	const int64_t *rows; // row i is x's row rows[i]; null: i
	int64_t n;           // rows
	const uint8_t *w;
	int64_t panelBytes, cols;
	int64_t columns;  // of y: the rows of w
	int64_t from, to; // panels
	uint8_t *scratch;
	int64_t format; // of w, by float.h
	int64_t add;    // the product is added to what is in y
};

INLINE float *yRow(const struct product *a, int64_t i) { return a->y + (a->yAt ? a->yAt[i] : i * a->stride); }
INLINE const uint8_t *xRow(const struct product *a, int64_t i) { return a->x + (a->rows ? a->rows[i] : i) * a->xBytes; }
