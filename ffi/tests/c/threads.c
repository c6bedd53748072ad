/* Several threads: shared references, blocks that another thread frees, races for one offset, failures apart. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>

enum { THREADS = 4, ROUNDS = 2000 };

static daxtier_pool pool;
static daxtier_pgmap pgmap;
static daxtier_folio shared;
static pthread_barrier_t barrier;
static int wins[THREADS];
static void *passed_on[THREADS][64];
static int frees;

static void count_free(void *context, const struct daxtier_freed_folio *freed)
{
    (void)context;
    (void)freed;
    __atomic_add_fetch(&frees, 1, __ATOMIC_RELAXED);
}

static void *work(void *argument)
{
    size_t self = (size_t)(uintptr_t)argument, i;
    daxtier_folio folio;
    char other[128];

    for (i = 0; i < ROUNDS; i++) {
        CHECK_OK(daxtier_folio_get(shared));
        CHECK_OK(daxtier_folio_put(shared));
    }
    /* One of all threads gets each offset. */
    for (i = 0; i < 200; i++) {
        pthread_barrier_wait(&barrier);
        if (daxtier_folio_request(pgmap, 512 + i, 0, &folio) == DAXTIER_OK) {
            wins[self]++;
            pthread_barrier_wait(&barrier);
            CHECK_OK(daxtier_folio_put(folio));
        } else {
            CHECK(strstr(daxtier_last_error(), "in use") != NULL);
            pthread_barrier_wait(&barrier);
        }
    }
    /* Each thread frees what its neighbour allocated. */
    for (i = 0; i < 64; i++) {
        CHECK_OK(daxtier_malloc(pool, 1 + 97 * i, 0, 0, &passed_on[self][i]));
        memset(passed_on[self][i], (int)self, 1 + 97 * i);
    }
    pthread_barrier_wait(&barrier);
    for (i = 0; i < 64; i++) {
        size_t from = (self + 1) % THREADS;

        CHECK(*(unsigned char *)passed_on[from][i] == from);
        CHECK_OK(daxtier_free(pool, passed_on[from][i]));
    }
    /* The text of a failure is the thread's own. */
    CHECK(daxtier_folio_put(self + 1) < 0);
    snprintf(other, sizeof other, "%s", daxtier_last_error());
    pthread_barrier_wait(&barrier);
    CHECK(strcmp(other, daxtier_last_error()) == 0);
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    struct daxtier_pgmap_options options;
    struct daxtier_folio_info info;
    size_t i;
    int sum = 0;

    PREPARE(options);
    options.on_free = count_free;
    CHECK_OK(daxtier_open("fast=64M slow=emulated:64M policy=interleave=1:1", &pool));
    CHECK_OK(daxtier_pgmap_open("emulated:64M", &options, &pgmap));
    CHECK_OK(daxtier_folio_request(pgmap, 0, 0, &shared));
    CHECK(pthread_barrier_init(&barrier, NULL, THREADS) == 0);
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i) == 0);
    for (i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        sum += wins[i];
    }
    CHECK(sum == 200);
    CHECK(frees == 200);
    PREPARE(info);
    CHECK_OK(daxtier_folio_info(shared, &info));
    CHECK(info.ref_count == 1);
    CHECK_OK(daxtier_folio_put(shared));
    CHECK(frees == 201);
    CHECK_OK(daxtier_pgmap_close(pgmap));
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
    return 0;
}
