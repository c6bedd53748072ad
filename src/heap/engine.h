/*
 * The engine's fast paths: what mimalloc does for most small blocks, inlined on its own structures.
 *
 * A block is popped from the thread's page of its size class, or pushed back to its page; nothing else is ever changed
 * here but the order of the thread's own pages, no lock is taken and nothing is waited for. Whatever takes more is left to
 * mimalloc's own functions, which engine.rs calls. There the file's rules are written down as well: how marks work, and
 * what the callers may rely on.
 *
 * The structures are those of the mimalloc that libmimalloc-sys builds without its features `secure` and `debug`;
 * daxtier_engine_is_plain() tells whether it did, and nothing else here may be called if it did not.
 */
#ifndef DAXTIER_ENGINE_H
#define DAXTIER_ENGINE_H

#include "../sync/shortcut.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MI_DEBUG 0
#include <mimalloc.h>
#include <mimalloc/internal.h>
#include <mimalloc/prim.h>

#define HIDDEN __attribute__((visibility("hidden")))
#define INLINED static inline __attribute__((always_inline))

/* Serves what the fast path does not. Returns NULL when memory is exhausted. */
typedef void *slow_malloc(size_t size);
/* Frees what the fast path does not, NULL among it. */
typedef void slow_free(void *block);

/* A free block: mimalloc's link, then the mark. */
struct block {
    struct block *next;
    uintptr_t mark;
};

/* What addresses are mixed with to make marks. Written before the first block is handed out. */
extern HIDDEN uintptr_t daxtier_engine_secret;
/*
 * Where the blocks are that are freed here. Each is written once, before there is a block, and until then, whatever a thread
 * sees of either, no address is inside: the start is one that no program has. Plain words, so that they can be operands; who
 * holds a block of the zone got it after they were written.
 */
extern HIDDEN uintptr_t daxtier_engine_zone_start;
extern HIDDEN uintptr_t daxtier_engine_zone_len;

/* Serves a size whose first page has run out, or leaves it to `slow`. */
HIDDEN void *daxtier_engine_take_from_next(mi_theap_t *theap, mi_page_t *first, size_t size, bool zero, slow_malloc *slow);

INLINED uintptr_t mark_of(const struct block *block)
{
    return (uintptr_t)block ^ daxtier_engine_secret;
}

/* Takes a block from a page that has a free one. */
INLINED struct block *take(mi_page_t *page, bool zero)
{
    struct block *block = (struct block *)page->free;
    page->free = (mi_block_t *)block->next;
    page->used++;
    if (zero && !page->free_is_zero) {
        _mi_memzero_aligned(block, page->block_size);
    } else {
        if (zero) block->next = NULL;
        block->mark = 0;
    }
    return block;
}

/*
 * Takes a block of at least `size` bytes from this thread's page of a heap, or leaves it to `slow` when that takes more than
 * to pop one, and for sizes of 0 and above 1 KiB.
 */
INLINED void *pop_or(mi_theap_t *theap, size_t size, bool zero, slow_malloc *slow)
{
    size_t last = size - 1;
    if (mi_unlikely(last >= MI_SMALL_SIZE_MAX)) return slow(size);
    /* The entry of the size rounded up to 16; an entry is a word, as is the unit of its index. */
    const char *entries = (const char *)theap->pages_free_direct;
    mi_page_t *page = *(mi_page_t *const *)(entries + ((last | 15) + 1));
    /* Apart, so that this needs no frame. */
    if (mi_unlikely(page->free == NULL)) return daxtier_engine_take_from_next(theap, page, size, zero, slow);
    return take(page, zero);
}

/* Gives a live block back, if that takes no more than to push it. Returns whether it did. */
INLINED bool push(struct block *block)
{
    mi_page_t *page = _mi_ptr_page(block);
    if (mi_unlikely(page == NULL)) return false;
    /* Zero: the page is this thread's. Its two low bits: the page is full, has blocks that begin before their address. */
    mi_threadid_t other = _mi_prim_thread_id() ^ mi_page_xthread_id(page);
    if (mi_likely(other == 0)) {
        uintptr_t mark = mark_of(block);
        if (mi_unlikely(block->mark == mark)) return false;
        uint16_t used = (uint16_t)(page->used - 1);
        /* With the last block, mimalloc lets go of the page in a while, and notes that it does. */
        if (mi_unlikely(used == 0) && page->retire_expire == 0) return false;
        page->used = used;
        block->mark = mark;
        block->next = (struct block *)page->local_free;
        page->local_free = (mi_block_t *)block;
        return true;
    }
    if (other <= MI_PAGE_FLAG_MASK || (other & MI_PAGE_HAS_INTERIOR_POINTERS) != 0) return false;
    /* Another thread's page: onto its list for others, unless nobody owns the page. */
    uintptr_t mark = mark_of(block);
    if (mi_unlikely(block->mark == mark)) return false;
    mi_thread_free_t list = mi_atomic_load_relaxed(&page->xthread_free);
    do {
        if (mi_unlikely(!mi_tf_is_owned(list))) {
            block->mark = 0;
            return false;
        }
        block->mark = mark;
        block->next = (struct block *)mi_tf_block(list);
        /* Release: the owner, which acquires, sees the link, the mark, and all that was done to the block before. */
    } while (!mi_atomic_cas_weak_acq_rel(&page->xthread_free, &list, mi_tf_create((mi_block_t *)block, true)));
    return true;
}

/* Allocates from the heap that leads, zeroed if that is asked for, or leaves it to `slow`. */
INLINED void *engine_malloc_or(size_t size, bool zero, slow_malloc *slow)
{
    return pop_or(daxtier_shortcut, size, zero, slow);
}

/* Frees a block of the zone, or leaves it to `slow`, as it does whatever is no live block. */
INLINED void engine_free_or(void *block, slow_free *slow)
{
    uintptr_t offset = (uintptr_t)block - daxtier_engine_zone_start;
    if (mi_unlikely(offset >= daxtier_engine_zone_len || !push(block))) slow(block);
}

#endif
