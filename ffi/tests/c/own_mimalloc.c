/* A program with functions named like mimalloc's: they stay its own, and the library's stay the library's. */
#include "check.h"

#ifdef __cplusplus
extern "C" {
#endif
void *mi_malloc(size_t size);
void mi_free(void *block);
void *mi_heap_malloc(void *heap, size_t size);
void mi_collect(int force);
int rust_eh_personality(void);
#ifdef __cplusplus
}
#endif

static int calls;
static char only_block[16];

void *mi_malloc(size_t size)
{
    (void)size;
    calls++;
    return only_block;
}

void mi_free(void *block)
{
    (void)block;
    calls++;
}

void *mi_heap_malloc(void *heap, size_t size)
{
    (void)heap;
    return mi_malloc(size);
}

void mi_collect(int force)
{
    calls += 1 + force;
}

int rust_eh_personality(void)
{
    return ++calls;
}

int main(void)
{
    daxtier_pool pool;
    struct daxtier_stats stats;
    void *block;

    CHECK_OK(daxtier_open("fast=64M", &pool));
    CHECK_OK(daxtier_malloc(pool, 1000, 0, 0, &block));
    CHECK(block != (void *)only_block);
    CHECK_OK(daxtier_free(pool, block));
    PREPARE(stats);
    CHECK_OK(daxtier_stats(pool, &stats));
    CHECK_CODE(daxtier_malloc(pool, (size_t)1 << 40, 0, 0, &block), DAXTIER_ENOMEM);
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
    CHECK(calls == 0);
    CHECK(mi_malloc(1) == (void *)only_block && calls == 1);
    return 0;
}
