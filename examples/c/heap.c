/*
 * Blocks from two tiers: hot data in DRAM, cold data on the slow device, and a picture of it.
 *
 *   cc heap.c $(pkg-config --cflags --libs daxtier) -o heap && ./heap
 */
#include <daxtier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int code, const char *what)
{
    if (code != DAXTIER_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, daxtier_strerror(code), daxtier_last_error());
        exit(1);
    }
}

int main(void)
{
    daxtier_pool pool;
    void *index, *archive, *scratch;
    struct daxtier_tier_stats tier;
    uint32_t number;

    /* 64 MiB of DRAM and an emulated device; with hardware, slow=/dev/dax0.0 */
    check(daxtier_open("fast=64M slow=emulated:256M policy=fill", &pool), "open");

    /* Strictly DRAM, strictly the device, and wherever the policy says. */
    check(daxtier_malloc(pool, 8u << 20, 64, DAXTIER_TIER_FAST | DAXTIER_HINT_LONG, &index), "index");
    check(daxtier_malloc(pool, 100u << 20, 0, DAXTIER_TIER_SLOW | DAXTIER_HINT_LONG, &archive), "archive");
    check(daxtier_malloc(pool, 1000, 0, DAXTIER_ZERO, &scratch), "scratch");
    memset(index, 1, 8u << 20);
    memset(archive, 2, 100u << 20);
    check(daxtier_realloc(pool, scratch, 5000, 0, 0, &scratch), "realloc");

    memset(&tier, 0, sizeof tier);
    tier.size = sizeof tier;
    for (number = 0; daxtier_tier_stats(pool, number, &tier) == DAXTIER_OK; number++)
        printf("%-5s %-9s %4llu of %4llu MiB in use\n", tier.name, tier.kind,
               (unsigned long long)(tier.used_bytes >> 20), (unsigned long long)(tier.capacity_bytes >> 20));

    check(daxtier_free(pool, scratch), "free");
    check(daxtier_free(pool, archive), "free");
    check(daxtier_free(pool, index), "free");
    check(daxtier_close(pool, NULL, 0, NULL), "close");
    return 0;
}
