/*
 * The engine's fast paths: what mimalloc does for most small blocks, inlined on its own structures.
 *
 * A block is popped from the thread's page of its size class, or pushed back to its page; nothing else is ever changed
 * here, no lock is taken and nothing is waited for. Whatever takes more is left to mimalloc's own functions, which
 * engine.rs calls. There the file's rules are written down as well: how marks work, and what the callers may rely on.
 *
 * The structures are those of the mimalloc that libmimalloc-sys builds without its features `secure` and `debug`;
 * daxtier_engine_is_plain() tells whether it did, and nothing else here may be called if it did not.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MI_DEBUG 0
#include <mimalloc.h>
#include <mimalloc/internal.h>
#include <mimalloc/prim.h>

#define HIDDEN __attribute__((visibility("hidden")))
#define INLINED static inline __attribute__((always_inline))

/* A free block: mimalloc's link, then the mark. */
struct block {
    struct block *next;
    uintptr_t mark;
};

/* What addresses are mixed with to make marks. Written before the first block is handed out. */
HIDDEN uintptr_t daxtier_engine_secret;

/* The heap that daxtier_engine_malloc() allocates from. Until there is one, an address that no heap has: NULL is that of a
   thread which has not allocated yet. */
HIDDEN _Atomic(mi_heap_t *) daxtier_engine_lead = (mi_heap_t *)1;
/* Where the blocks are that daxtier_engine_free() frees. Written once, before there is one. */
HIDDEN _Atomic(uintptr_t) daxtier_engine_zone_start;
HIDDEN _Atomic(uintptr_t) daxtier_engine_zone_len;

INLINED uintptr_t mark_of(const struct block *block)
{
    return (uintptr_t)block ^ daxtier_engine_secret;
}

/* How many of its slow allocations a thread makes before mimalloc looks after retired pages. */
enum { SLOW_BEFORE_CARE = 1000 };

/* How many pages of a size class are looked at, the first among them, before mimalloc searches. */
enum { PAGES_LOOKED_AT = 12 };

/* Of how many blocks one has to be free in a page that is taken without looking on. */
enum { ENOUGH_FREE = 4 };

/* Makes a page the first of its size class, where `first` is that and `page` is further back: mi_page_queue_move_to_front(). */
INLINED void move_to_front(mi_theap_t *theap, mi_page_t *first, mi_page_t *page)
{
    mi_page_queue_t *queue = mi_page_queue(theap, page->block_size);
    page->prev->next = page->next;
    if (page->next != NULL) page->next->prev = page->prev;
    else queue->last = page->prev;
    page->prev = NULL;
    page->next = first;
    first->prev = page;
    queue->first = page;
    /* The entries of all sizes that the class serves, down from the largest. */
    mi_page_t **entry = &theap->pages_free_direct[_mi_wsize_from_size(page->block_size)];
    for (; entry >= theap->pages_free_direct && *entry == first; entry--) *entry = page;
}

/*
 * Makes a page that has free blocks the first of its size class, where `first` is that and has none: the next one of which a
 * good part is free, since one with a block or two has run out again at once, or else the one with most. Returns NULL when
 * none has any, or when mimalloc wants to see the thread: then its own search counts likewise, but also moves full
 * pages away, extends pages, and makes new ones.
 */
INLINED mi_page_t *refill(mi_theap_t *theap, mi_page_t *first)
{
    if (mi_unlikely(theap->generic_count + 1 >= SLOW_BEFORE_CARE)) return NULL;
    mi_page_t *best = NULL;
    int most_free = 0;
    mi_page_t *page = first;
    for (int looked_at = 0; page != NULL && looked_at < PAGES_LOOKED_AT; looked_at++, page = page->next) {
        /* In its two lists: what other threads have freed still counts as used. */
        int nr_free = page->capacity - page->used;
        /* Choices, not branches: no processor could foresee them. */
        best = nr_free > most_free ? page : best;
        most_free = nr_free > most_free ? nr_free : most_free;
        if (nr_free * ENOUGH_FREE > page->capacity) break;
    }
    if (best == NULL) return NULL;
    if (best->free == NULL) {
        best->free = best->local_free;
        best->local_free = NULL;
        best->free_is_zero = false;
    }
    best->retire_expire = 0;
    theap->generic_count++;
    if (best != first) move_to_front(theap, first, best);
    return best;
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

/* Serves a size whose first page has run out, or leaves it to `slow`. Apart, so that those who call it last need no frame. */
static __attribute__((noinline)) void *take_from_next(mi_theap_t *theap, mi_page_t *first, size_t size, bool zero,
                                                      void *(*slow)(size_t))
{
    mi_page_t *page = refill(theap, first);
    return mi_likely(page != NULL) ? take(page, zero) : slow(size);
}

/*
 * Takes a block of at least `size` bytes from this thread's page of `heap`, or leaves it to `slow` when that takes more than
 * to pop one, and for sizes of 0 and above 1 KiB.
 */
INLINED void *pop_or(mi_heap_t *heap, size_t size, bool zero, void *(*slow)(size_t))
{
    /* What this thread allocated from last; an empty one, of no heap, before its first block and after its end. */
    mi_theap_t *theap = _mi_theap_cached();
    if (mi_unlikely(mi_atomic_load_ptr_relaxed(mi_heap_t, &theap->heap) != heap)) return slow(size);
    size_t last = size - 1;
    if (mi_unlikely(last >= MI_SMALL_SIZE_MAX)) return slow(size);
    /* The entry of the size rounded up to 16; an entry is a word, as is the unit of its index. */
    const char *entries = (const char *)theap->pages_free_direct;
    mi_page_t *page = *(mi_page_t *const *)(entries + ((last | 15) + 1));
    if (mi_unlikely(page->free == NULL)) return take_from_next(theap, page, size, zero, slow);
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

/* Allocates from the leading heap, or leaves it to `slow`. */
HIDDEN void *daxtier_engine_malloc(size_t size, void *(*slow)(size_t))
{
    /* Relaxed: a thread that has pages of this heap has met it before; any other goes the slow way. */
    return pop_or(mi_atomic_load_relaxed(&daxtier_engine_lead), size, false, slow);
}

/* Allocates zeroed memory from the leading heap, or leaves it to `slow`. */
HIDDEN void *daxtier_engine_zalloc(size_t size, void *(*slow)(size_t))
{
    return pop_or(mi_atomic_load_relaxed(&daxtier_engine_lead), size, true, slow);
}

/* Frees a block of the zone, or leaves it to `slow`, as it does whatever is no live block. */
HIDDEN void daxtier_engine_free(void *block, void (*slow)(void *))
{
    /* Relaxed: whoever holds a block of the zone got it after the zone was published. */
    uintptr_t offset = (uintptr_t)block - mi_atomic_load_relaxed(&daxtier_engine_zone_start);
    if (mi_unlikely(offset >= mi_atomic_load_relaxed(&daxtier_engine_zone_len) || !push(block))) slow(block);
}

static void *no_block(size_t size)
{
    (void)size;
    return NULL;
}

/* Takes a block from `heap`, or returns NULL when that takes more. */
HIDDEN void *daxtier_engine_pop(size_t size, mi_heap_t *heap)
{
    return pop_or(heap, size, false, no_block);
}

/* Frees a live block of the heap zone, or returns false when that takes more. */
HIDDEN bool daxtier_engine_push(void *block)
{
    return push(block);
}

/* What lies at an address. The numbers are those of `Found` in engine.rs. */
enum found { FOUND_LIVE, FOUND_FOREIGN, FOUND_INSIDE, FOUND_FREED };

/*
 * Says what begins at any address, and writes where the block around it begins unless it is foreign. Exact as long as no
 * other thread frees that block meanwhile. In a page that holds blocks of a larger alignment than their size class has,
 * every multiple of 16 inside a block is taken for its address.
 */
HIDDEN enum found daxtier_engine_find(const void *address, void **start)
{
    const mi_page_t *page = _mi_safe_ptr_page(address);
    if (page == NULL || (const uint8_t *)address < page->page_start) return FOUND_FOREIGN;
    size_t offset = (size_t)((const uint8_t *)address - page->page_start);
    size_t index = offset / page->block_size;
    /* Relaxed: the page's thread may add blocks meanwhile, but has added the caller's before it handed it out. */
    if (index >= __atomic_load_n(&page->capacity, __ATOMIC_RELAXED)) return FOUND_FOREIGN;
    struct block *block = (struct block *)(page->page_start + index * page->block_size);
    *start = block;
    if ((const void *)block != address
        && (!mi_page_has_interior_pointers(page) || (uintptr_t)address % MI_MAX_ALIGN_SIZE != 0)) return FOUND_INSIDE;
    return block->mark == mark_of(block) ? FOUND_FREED : FOUND_LIVE;
}

/* Marks a block as free. It begins at `start`, which differs from its address where that is aligned. */
HIDDEN void daxtier_engine_mark(void *start)
{
    ((struct block *)start)->mark = mark_of(start);
}

/* Removes the mark from a block that mimalloc has just handed out. */
HIDDEN void daxtier_engine_unmark(void *block)
{
    const mi_page_t *page = _mi_ptr_page(block);
    struct block *start = block;
    if (mi_unlikely(mi_page_has_interior_pointers(page))) start = (struct block *)_mi_page_ptr_unalign(page, block);
    start->mark = 0;
}

/* Whether mimalloc's structures are those that this file was compiled for: their last field is where it should be. */
HIDDEN bool daxtier_engine_is_plain(void)
{
    return _mi_theap_empty.stats.size == sizeof(mi_stats_t) && _mi_theap_empty.stats.version == MI_STAT_VERSION;
}
