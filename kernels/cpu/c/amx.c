// variants: amx
#define TILES
#define TILE_ARGUMENT
#include "amx.h"

void manyTiles(struct product *a) { rowTiles(a); }
