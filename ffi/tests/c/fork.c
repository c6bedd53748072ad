/* fork: the child has blocks of its own, and the parent's device stays the parent's. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 100, SIZE = 10000 };

static void child(daxtier_pool pool, daxtier_pgmap pgmap, daxtier_folio folio, unsigned char **blocks)
{
    struct daxtier_folio_info info;
    struct daxtier_pgmap_stats stats;
    daxtier_folio other;
    void *fresh;
    int i;

    for (i = 0; i < BLOCKS; i++) {
        CHECK(blocks[i][0] == i && blocks[i][SIZE - 1] == i);
        memset(blocks[i], 0xEE, SIZE);
    }
    CHECK_OK(daxtier_malloc(pool, SIZE, 0, DAXTIER_TIER_SLOW, &fresh));
    memset(fresh, 0xDD, SIZE);
    for (i = 0; i < BLOCKS; i++)
        CHECK_OK(daxtier_free(pool, blocks[i]));
    CHECK_OK(daxtier_free(pool, fresh));

    /* No put reaches the parent's device, and no callback runs for it. */
    PREPARE(info);
    CHECK_CODE(daxtier_folio_get(folio), DAXTIER_EFORKED);
    CHECK_CODE(daxtier_folio_info(folio, &info), DAXTIER_EFORKED);
    CHECK_CODE(daxtier_folio_put(folio), DAXTIER_EFORKED);
    CHECK(daxtier_folio_request(pgmap, 0, 0, &other) < 0);
    PREPARE(stats);
    CHECK_OK(daxtier_pgmap_stats(pgmap, &stats));
    _exit(0);
}

static void never(void *context, const struct daxtier_freed_folio *freed)
{
    (void)freed;
    ++*(int *)context;
}

int main(void)
{
    unsigned char *blocks[BLOCKS];
    struct daxtier_pgmap_options options;
    struct daxtier_folio_info info;
    daxtier_pool pool;
    daxtier_pgmap pgmap;
    daxtier_folio folio;
    int calls = 0, status, i;
    pid_t pid;

    PREPARE(options);
    options.on_free = never;
    options.context = &calls;
    CHECK_OK(daxtier_open("fast=64M slow=emulated:64M policy=preferred=slow", &pool));
    CHECK_OK(daxtier_pgmap_open("emulated:64M", &options, &pgmap));
    CHECK_OK(daxtier_folio_request(pgmap, 0, 9, &folio));
    PREPARE(info);
    CHECK_OK(daxtier_folio_info(folio, &info));
    memset(info.address, 0x42, 4096);
    for (i = 0; i < BLOCKS; i++) {
        void *block;

        CHECK_OK(daxtier_malloc(pool, SIZE, 0, 0, &block));
        blocks[i] = (unsigned char *)block;
        memset(block, i, SIZE);
    }

    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        child(pool, pgmap, folio, blocks);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);

    CHECK(*(unsigned char *)info.address == 0x42);
    for (i = 0; i < BLOCKS; i++) {
        CHECK(blocks[i][0] == i && blocks[i][SIZE - 1] == i);
        CHECK_OK(daxtier_free(pool, blocks[i]));
    }
    CHECK(calls == 0);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK(calls == 1);
    CHECK_OK(daxtier_pgmap_close(pgmap));
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
    return 0;
}
