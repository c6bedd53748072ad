/* What of the engine's fast paths is not inlined, what engine.rs calls of them, and what else needs mimalloc's structures. */
#include "engine.h"

HIDDEN uintptr_t daxtier_engine_secret;
HIDDEN uintptr_t daxtier_engine_zone_start = (uintptr_t)1 << 63;
HIDDEN uintptr_t daxtier_engine_zone_len;

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

HIDDEN void *daxtier_engine_take_from_next(mi_theap_t *theap, mi_page_t *first, size_t size, bool zero, slow_malloc *slow)
{
    mi_page_t *page = refill(theap, first);
    return mi_likely(page != NULL) ? take(page, zero) : slow(size);
}

HIDDEN void *daxtier_engine_malloc(size_t size, slow_malloc *slow)
{
    return engine_malloc_or(size, false, slow);
}

HIDDEN void *daxtier_engine_zalloc(size_t size, slow_malloc *slow)
{
    return engine_malloc_or(size, true, slow);
}

HIDDEN void daxtier_engine_free(void *block, slow_free *slow)
{
    engine_free_or(block, slow);
}

static void *no_block(size_t size)
{
    (void)size;
    return NULL;
}

/* Takes a block from `heap`, or returns NULL when that takes more. */
HIDDEN void *daxtier_engine_pop(size_t size, mi_heap_t *heap)
{
    /* What this thread allocated from last; an empty one, of no heap, before its first block and after its end. Relaxed: a
       thread that has pages of this heap has met it before. */
    mi_theap_t *theap = _mi_theap_cached();
    if (mi_unlikely(mi_atomic_load_ptr_relaxed(mi_heap_t, &theap->heap) != heap)) return NULL;
    return pop_or(theap, size, false, no_block);
}

/* Frees a live block of the heap zone, or returns false when that takes more. */
HIDDEN bool daxtier_engine_push(void *block)
{
    return push(block);
}

/* Whether the shortcut leads to what this thread allocated from last. */
HIDDEN bool daxtier_engine_has_shortcut(void)
{
    return daxtier_shortcut == _mi_theap_cached();
}

/* Opens the shortcut to `heap`, if this thread allocated from it last. */
HIDDEN void daxtier_engine_open_shortcut(const mi_heap_t *heap)
{
    mi_theap_t *theap = _mi_theap_cached();
    if (mi_atomic_load_ptr_relaxed(mi_heap_t, &theap->heap) == heap) daxtier_shortcut = theap;
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
    size_t index = 0;
    if (offset >= page->block_size) {
        /* A page of several blocks is much smaller, and a division of fewer bits much faster. */
        if (offset > UINT32_MAX) return FOUND_FOREIGN;
        index = (uint32_t)offset / (uint32_t)page->block_size;
    }
    /* Relaxed: the page's thread may add blocks meanwhile, but has added the caller's before it handed it out. */
    if (index >= __atomic_load_n(&page->capacity, __ATOMIC_RELAXED)) return FOUND_FOREIGN;
    struct block *block = (struct block *)(page->page_start + index * page->block_size);
    *start = block;
    if ((const void *)block != address
        && (!mi_page_has_interior_pointers(page) || (uintptr_t)address % MI_MAX_ALIGN_SIZE != 0)) return FOUND_INSIDE;
    return block->mark == mark_of(block) ? FOUND_FREED : FOUND_LIVE;
}

/* Where a live block, known by its address, begins: before that in a page of blocks of a larger alignment. */
INLINED struct block *start_of(void *block)
{
    const mi_page_t *page = _mi_ptr_page(block);
    if (mi_likely(!mi_page_has_interior_pointers(page))) return block;
    return (struct block *)_mi_page_ptr_unalign(page, block);
}

/* Marks a live block as free. */
HIDDEN void daxtier_engine_mark(void *block)
{
    struct block *start = start_of(block);
    start->mark = mark_of(start);
}

/* Removes the mark from a block that mimalloc has just handed out. */
HIDDEN void daxtier_engine_unmark(void *block)
{
    start_of(block)->mark = 0;
}

/* Whether mimalloc's structures are those that this file was compiled for: their last field is where it should be. */
HIDDEN bool daxtier_engine_is_plain(void)
{
    return _mi_theap_empty.stats.size == sizeof(mi_stats_t) && _mi_theap_empty.stats.version == MI_STAT_VERSION;
}
