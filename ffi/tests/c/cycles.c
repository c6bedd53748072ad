/* Pools that are opened and closed again and again, used by threads that live on and by threads that end: nothing is left
   behind. How often, the first argument says. */
#include "check.h"

#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>

#define BLOCKS 8

/* What the process has. */
struct process {
    long mappings, descriptors, threads, resident_kib, addresses_kib;
};

static struct process process_now(void)
{
    struct process now;
    char line[512];
    FILE *file;
    DIR *folder;

    memset(&now, 0, sizeof now);
    CHECK((file = fopen("/proc/self/maps", "r")) != NULL);
    while (fgets(line, sizeof line, file)) now.mappings++;
    fclose(file);
    CHECK((file = fopen("/proc/self/status", "r")) != NULL);
    while (fgets(line, sizeof line, file)) {
        sscanf(line, "Threads: %ld", &now.threads);
        sscanf(line, "VmRSS: %ld", &now.resident_kib);
        sscanf(line, "VmSize: %ld", &now.addresses_kib);
    }
    fclose(file);
    CHECK((folder = opendir("/proc/self/fd")) != NULL);
    while (readdir(folder)) now.descriptors++;
    closedir(folder);
    return now;
}

static daxtier_pool pool;
static void *blocks[BLOCKS];

static void *allocate(void *unused)
{
    static const size_t sizes[BLOCKS] = {1, 100, 1000, 10000, 100000, 3u << 20, 1, 100};
    size_t i;

    (void)unused;
    for (i = 0; i < BLOCKS; i++) {
        CHECK_OK(daxtier_malloc(pool, sizes[i], 0, i % 2 ? DAXTIER_TIER_SLOW : 0, &blocks[i]));
        memset(blocks[i], 1, 1);
    }
    return NULL;
}

static void free_all(void)
{
    size_t i;

    for (i = 0; i < BLOCKS; i++) CHECK_OK(daxtier_free(pool, blocks[i]));
}

static sem_t work, done;

/* A thread that allocates when it is told to, and keeps whatever the pools leave in it. */
static void *live_on(void *unused)
{
    for (;;) {
        while (sem_wait(&work)) continue;
        allocate(unused);
        sem_post(&done);
    }
    return NULL;
}

static void cycle(long at)
{
    daxtier_folio folio;
    pthread_t thread;

    CHECK_OK(daxtier_open("fast=16M slow=emulated:16M", &pool));
    CHECK_OK(daxtier_folio_alloc(pool, 0, DAXTIER_TIER_SLOW, &folio));
    CHECK_OK(daxtier_folio_put(folio));
    switch (at % 3) {
    case 0:
        allocate(NULL);
        break;
    case 1:
        CHECK(pthread_create(&thread, NULL, allocate, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        break;
    default:
        sem_post(&work);
        while (sem_wait(&done)) continue;
    }
    free_all();
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
}

int main(int argc, char **argv)
{
    long cycles = argc > 1 ? atol(argv[1]) : 200, at;
    struct process before, after;
    pthread_t thread;

    CHECK(sem_init(&work, 0, 0) == 0 && sem_init(&done, 0, 0) == 0);
    CHECK(pthread_create(&thread, NULL, live_on, NULL) == 0);
    for (at = 0; at < 100; at++) cycle(at);
    before = process_now();
    for (at = 0; at < cycles; at++) cycle(at);
    after = process_now();
    printf("mappings %ld to %ld, descriptors %ld to %ld, threads %ld to %ld, resident KiB %ld to %ld, addresses KiB %ld to %ld\n",
           before.mappings, after.mappings, before.descriptors, after.descriptors, before.threads, after.threads,
           before.resident_kib, after.resident_kib, before.addresses_kib, after.addresses_kib);
    /* A page lost in each of ten thousand cycles is 40 MiB. */
    CHECK(after.mappings < before.mappings + 30);
    CHECK(after.descriptors == before.descriptors);
    CHECK(after.threads == before.threads);
    CHECK(after.resident_kib < before.resident_kib + 8192);
    CHECK(after.addresses_kib < before.addresses_kib + 65536);
    return 0;
}
