/*
 * The functions that programs call most: the engine's fast paths are inlined in them, so that nothing stands before those.
 * The rest of each is in lib.rs.
 */
#include "engine.h"

#define EXPORTED __attribute__((visibility("default")))

HIDDEN void *daxtier_preload_malloc_slow(size_t size);
HIDDEN void *daxtier_preload_zalloc_slow(size_t size);
HIDDEN void *daxtier_preload_too_large(void);
HIDDEN void daxtier_preload_free_slow(void *block);

/* Allocates `size` bytes. See malloc(3). */
EXPORTED void *malloc(size_t size)
{
    return engine_malloc_or(size, false, daxtier_preload_malloc_slow);
}

/* Allocates `count` times `size` zero bytes. See calloc(3). */
EXPORTED void *calloc(size_t count, size_t size)
{
    size_t total;
    if (mi_unlikely(__builtin_mul_overflow(count, size, &total))) return daxtier_preload_too_large();
    return engine_malloc_or(total, true, daxtier_preload_zalloc_slow);
}

/* Frees a block; NULL is allowed. Keeps `errno`. See free(3). */
EXPORTED void free(void *block)
{
    engine_free_or(block, daxtier_preload_free_slow);
}

/* Frees a block, as free() does. */
EXPORTED void cfree(void *block)
{
    engine_free_or(block, daxtier_preload_free_slow);
}
