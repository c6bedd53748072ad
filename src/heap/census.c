/*
 * What a page's figures do not say. Apart from engine.c, since nothing here is on a fast path.
 */
#include <stddef.h>

#define MI_DEBUG 0
#include <mimalloc.h>
#include <mimalloc/internal.h>

#define HIDDEN __attribute__((visibility("hidden")))

/*
 * Counts the blocks of a page that other threads than its own have freed, and that its thread has not met since: to
 * mimalloc they are in use. Nobody uses the page meanwhile.
 */
HIDDEN size_t daxtier_engine_freed_by_others(const mi_page_t *page)
{
    size_t count = 0;
    /* Acquire: pairs with the release by which a thread pushed its block; the links are seen. */
    const mi_block_t *block = mi_tf_block(mi_atomic_load_acquire(&((mi_page_t *)page)->xthread_free));
    while (block != NULL) {
        count++;
        block = mi_block_next(page, block);
    }
    return count;
}
