/* Pgmaps: opening, life cycle, free callbacks. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <time.h>

struct seen {
    int calls;
    struct daxtier_freed_folio last;
    daxtier_pgmap request_again_in;
    daxtier_folio again;
};

static void on_free(void *context, const struct daxtier_freed_folio *freed)
{
    struct seen *seen = (struct seen *)context;

    seen->calls++;
    seen->last = *freed;
    if (seen->request_again_in) {
        /* No lock is held and the pages are idle: the same offset can be had again at once. */
        CHECK_OK(daxtier_folio_request(seen->request_again_in, freed->offset, freed->order, &seen->again));
        seen->request_again_in = 0;
    }
}

static void wrong_devices_and_options_are_refused(void)
{
    daxtier_pgmap pgmap = 99;
    struct daxtier_pgmap_options options;

    CHECK_CODE(daxtier_pgmap_open(NULL, NULL, &pgmap), DAXTIER_ENULL);
    CHECK_CODE(daxtier_pgmap_open("emulated:64M", NULL, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_pgmap_open("tape:64M", NULL, &pgmap), DAXTIER_ECONFIG);
    CHECK_CODE(daxtier_pgmap_open("emulated:0", NULL, &pgmap), DAXTIER_ECONFIG);
    CHECK_CODE(daxtier_pgmap_open("emulated:64M,size=128M", NULL, &pgmap), DAXTIER_ECONFIG);
    CHECK_CODE(daxtier_pgmap_open("", NULL, &pgmap), DAXTIER_ECONFIG);
    CHECK(daxtier_pgmap_open("/dev/dax999.999", NULL, &pgmap) < 0);
    CHECK(daxtier_pgmap_open("/dev/zero", NULL, &pgmap) < 0);
    CHECK(daxtier_pgmap_open("node:4321:64M", NULL, &pgmap) < 0);

    PREPARE(options);
    options.size = 20;
    CHECK_CODE(daxtier_pgmap_open("emulated:64M", &options, &pgmap), DAXTIER_ESIZE);
    PREPARE(options);
    options.offsets = 7;
    CHECK_CODE(daxtier_pgmap_open("emulated:64M", &options, &pgmap), DAXTIER_ECHOICE);
    PREPARE(options);
    options.min_order = 19;
    CHECK_CODE(daxtier_pgmap_open("emulated:64M", &options, &pgmap), DAXTIER_EORDER);
    options.min_order = 18;
    CHECK_CODE(daxtier_pgmap_open("emulated:64M", &options, &pgmap), DAXTIER_EORDER);
    CHECK(pgmap == 99);
}

static void structures_of_other_versions_are_understood(void)
{
    /* A newer program's options: longer than the library's. */
    struct {
        struct daxtier_pgmap_options known;
        uint64_t unknown;
    } newer;
    struct {
        struct daxtier_folio_info known;
        uint64_t unknown;
    } info;
    daxtier_pgmap pgmap;
    daxtier_folio folio;

    memset(&newer, 0, sizeof newer);
    newer.known.size = sizeof newer;
    newer.unknown = 1;
    CHECK_CODE(daxtier_pgmap_open("emulated:64M", &newer.known, &pgmap), DAXTIER_E2BIG);
    newer.unknown = 0;
    CHECK_OK(daxtier_pgmap_open("emulated:64M", &newer.known, &pgmap));

    CHECK_OK(daxtier_folio_request(pgmap, 4, 2, &folio));
    memset(&info, 0xAA, sizeof info);
    info.known.size = sizeof info;
    CHECK_OK(daxtier_folio_info(folio, &info.known));
    CHECK(info.known.offset == 4 && info.known.order == 2);
    CHECK(info.known.size == sizeof info);
    CHECK(info.unknown == 0);
    info.known.size = sizeof info.known - 8;
    CHECK_CODE(daxtier_folio_info(folio, &info.known), DAXTIER_ESIZE);
    info.known.size = (size_t)-1;
    CHECK_CODE(daxtier_folio_info(folio, &info.known), DAXTIER_ESIZE);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_pgmap_close(pgmap));
}

static void the_last_put_calls_back_once(void)
{
    daxtier_pgmap pgmap;
    daxtier_folio folio;
    struct daxtier_pgmap_options options;
    struct seen seen;

    memset(&seen, 0, sizeof seen);
    PREPARE(options);
    options.on_free = on_free;
    options.context = &seen;
    options.name = "mine";
    CHECK_OK(daxtier_pgmap_open("emulated:64M", &options, &pgmap));
    CHECK_OK(daxtier_folio_request(pgmap, 8, 3, &folio));
    CHECK_OK(daxtier_folio_set_user(folio, 0xABCDEF));
    CHECK_OK(daxtier_folio_get(folio));
    CHECK_OK(daxtier_folio_put(folio));
    CHECK(seen.calls == 0);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK(seen.calls == 1);
    CHECK(seen.last.size == sizeof seen.last);
    CHECK(seen.last.pgmap == pgmap);
    CHECK(seen.last.offset == 8 && seen.last.order == 3 && seen.last.user == 0xABCDEF);
    CHECK_CODE(daxtier_folio_put(folio), DAXTIER_ESTALE);
    CHECK(seen.calls == 1);
    CHECK_OK(daxtier_pgmap_close(pgmap));

    /* The callback may take the offset again. With offsets of one's own nobody else can have it meanwhile. */
    options.offsets = DAXTIER_OFFSETS_OWN;
    CHECK_OK(daxtier_pgmap_open("emulated:64M", &options, &pgmap));
    seen.request_again_in = pgmap;
    CHECK_OK(daxtier_folio_request(pgmap, 8, 3, &folio));
    CHECK_OK(daxtier_folio_put(folio));
    CHECK(seen.calls == 2 && seen.again != 0 && seen.again != folio);
    CHECK_CODE(daxtier_folio_get(folio), DAXTIER_ESTALE);
    CHECK_OK(daxtier_folio_put(seen.again));
    CHECK(seen.calls == 3);
    CHECK_OK(daxtier_pgmap_close(pgmap));
}

static void a_killed_pgmap_drains(void)
{
    daxtier_pgmap pgmap;
    daxtier_folio folio, other;
    struct daxtier_folio_info holders[2];
    struct daxtier_pgmap_stats stats;
    size_t nr_holders = 99, got;

    CHECK_OK(daxtier_pgmap_open("emulated:64M", NULL, &pgmap));
    PREPARE(stats);
    CHECK_OK(daxtier_pgmap_stats(pgmap, &stats));
    CHECK(stats.state == DAXTIER_PGMAP_LIVE && stats.nr_pages == 16384 && stats.used_bytes == 0);
    CHECK(strncmp(stats.device, "emulated:", 9) == 0);
    CHECK_CODE(daxtier_pgmap_drain(pgmap, 0, NULL, 0, NULL), DAXTIER_EINVAL);

    CHECK_OK(daxtier_folio_request(pgmap, 0, 0, &folio));
    CHECK_CODE(daxtier_pgmap_close(pgmap), DAXTIER_EBUSY);
    CHECK_OK(daxtier_folio_request(pgmap, 1, 0, &other)); /* live again */
    CHECK_OK(daxtier_folio_put(other));

    CHECK_OK(daxtier_pgmap_kill(pgmap));
    CHECK_CODE(daxtier_pgmap_kill(pgmap), DAXTIER_EDYING);
    CHECK_CODE(daxtier_folio_request(pgmap, 1, 0, &other), DAXTIER_EDYING);
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 0, 0, 1, &other, &got), DAXTIER_EDYING);
    CHECK_OK(daxtier_folio_get(folio)); /* holders may still get */
    CHECK_OK(daxtier_pgmap_stats(pgmap, &stats));
    CHECK(stats.state == DAXTIER_PGMAP_DYING && stats.used_bytes == 4096);

    PREPARE(holders[0]);
    CHECK_CODE(daxtier_pgmap_drain(pgmap, 10, holders, 2, &nr_holders), DAXTIER_ETIMEDOUT);
    CHECK(nr_holders == 1);
    CHECK(holders[0].pgmap == pgmap && holders[0].offset == 0 && holders[0].ref_count == 2);
    CHECK(holders[0].tier == -1);
    CHECK_CODE(daxtier_pgmap_drain(pgmap, 0, NULL, 1, &nr_holders), DAXTIER_ENULL);
    CHECK_CODE(daxtier_pgmap_close(pgmap), DAXTIER_EBUSY);

    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_pgmap_drain(pgmap, 1000, holders, 2, &nr_holders));
    CHECK_OK(daxtier_pgmap_stats(pgmap, &stats));
    CHECK(stats.state == DAXTIER_PGMAP_DRAINED);
    CHECK_OK(daxtier_pgmap_close(pgmap));
}

static void a_closed_pgmap_is_refused(void)
{
    daxtier_pgmap pgmap, other;
    daxtier_folio folio;
    struct daxtier_pgmap_stats stats;
    size_t got;

    CHECK_OK(daxtier_pgmap_open("emulated:64M", NULL, &pgmap));
    CHECK_OK(daxtier_pgmap_close(pgmap));
    CHECK_OK(daxtier_pgmap_open("emulated:64M", NULL, &other));
    PREPARE(stats);
    CHECK_CODE(daxtier_pgmap_close(pgmap), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_pgmap_kill(pgmap), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_pgmap_drain(pgmap, 0, NULL, 0, NULL), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_pgmap_stats(pgmap, &stats), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 0, 0, 1, &folio, &got), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_folio_request(pgmap, 0, 0, &folio), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_folio_try_get(pgmap, 0, &folio), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_pgmap_stats(other, NULL), DAXTIER_ENULL);
    stats.size = 1;
    CHECK_CODE(daxtier_pgmap_stats(other, &stats), DAXTIER_ESIZE);
    CHECK_OK(daxtier_pgmap_close(other));
}

static void a_pools_pgmap_is_the_pools(void)
{
    daxtier_pool pool;
    daxtier_folio folio;
    struct daxtier_folio_info info;
    struct daxtier_pgmap_stats stats;

    CHECK_OK(daxtier_open("fast=32M slow=emulated:64M", &pool));
    CHECK_OK(daxtier_folio_alloc(pool, 0, DAXTIER_TIER_SLOW, &folio));
    PREPARE(info);
    CHECK_OK(daxtier_folio_info(folio, &info));
    CHECK(info.tier == 1);
    PREPARE(stats);
    CHECK_OK(daxtier_pgmap_stats(info.pgmap, &stats));
    CHECK(stats.nr_pages == (64u << 20) / DAXTIER_PAGE_SIZE);
    CHECK_CODE(daxtier_pgmap_kill(info.pgmap), DAXTIER_EPERM);
    CHECK_CODE(daxtier_pgmap_drain(info.pgmap, 0, NULL, 0, NULL), DAXTIER_EPERM);
    CHECK_CODE(daxtier_pgmap_close(info.pgmap), DAXTIER_EPERM);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
    CHECK_CODE(daxtier_pgmap_stats(info.pgmap, &stats), DAXTIER_EHANDLE);
}

static void a_limit_holds(void)
{
    daxtier_pgmap pgmap;
    daxtier_folio folios[1024];
    struct daxtier_pgmap_options options;
    size_t got = 0, i;

    PREPARE(options);
    options.limit_pages = 1024;
    CHECK_OK(daxtier_pgmap_open("emulated:64M", &options, &pgmap));
    CHECK_OK(daxtier_pgmap_alloc(pgmap, 1, 0, 1024, folios, &got));
    CHECK(got == 512); /* partial success is reported */
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 1, 0, 1, folios + got, &i), DAXTIER_ENOMEM);
    for (i = 0; i < got; i++)
        CHECK_OK(daxtier_folio_put(folios[i]));
    CHECK_OK(daxtier_pgmap_close(pgmap));
}

static uint64_t ready_bytes(daxtier_pgmap pgmap)
{
    struct daxtier_pgmap_stats stats;

    PREPARE(stats);
    CHECK_OK(daxtier_pgmap_stats(pgmap, &stats));
    return stats.prezeroed_bytes;
}

static void zeroed_folios_are_kept_ready(void)
{
    struct daxtier_pgmap_options options;
    struct daxtier_folio_info info;
    daxtier_folio folios[8];
    const struct timespec millisecond = {0, 1000000};
    daxtier_pgmap pgmap;
    size_t got, round, at;

    PREPARE(options);
    options.retain_memory = 2;
    CHECK_CODE(daxtier_pgmap_open("emulated:16M", &options, &pgmap), DAXTIER_ECHOICE);
    options.retain_memory = 1;
    CHECK_OK(daxtier_pgmap_open("emulated:16M", &options, &pgmap));
    for (round = 0; round < 3; round++) {
        /* Cleared when they are asked for, kept ready, and with nothing kept again. */
        if (round == 1) {
            CHECK_OK(daxtier_pgmap_keep_zeroed(pgmap, 3));
            while (ready_bytes(pgmap) != 3 * (2 << 20))
                nanosleep(&millisecond, NULL);
        } else if (round == 2) {
            CHECK_OK(daxtier_pgmap_keep_zeroed(pgmap, 0));
            CHECK(ready_bytes(pgmap) == 0);
        }
        CHECK_OK(daxtier_pgmap_alloc(pgmap, 9, DAXTIER_ZERO, 8, folios, &got));
        CHECK(got == 8);
        while (got-- > 0) {
            const unsigned char *bytes;

            PREPARE(info);
            CHECK_OK(daxtier_folio_info(folios[got], &info));
            bytes = (const unsigned char *)info.address;
            for (at = 0; at < 2 << 20; at += 61)
                CHECK(bytes[at] == 0);
            memset(info.address, 0xA5, 2 << 20);
            CHECK_OK(daxtier_folio_put(folios[got]));
        }
    }
    CHECK_OK(daxtier_pgmap_close(pgmap));
    CHECK_CODE(daxtier_pgmap_keep_zeroed(pgmap, 1), DAXTIER_EHANDLE);

    PREPARE(options);
    options.offsets = DAXTIER_OFFSETS_OWN;
    CHECK_OK(daxtier_pgmap_open("emulated:16M", &options, &pgmap));
    CHECK_CODE(daxtier_pgmap_keep_zeroed(pgmap, 1), DAXTIER_ENOTSUP);
    CHECK_OK(daxtier_pgmap_close(pgmap));
}

int main(void)
{
    wrong_devices_and_options_are_refused();
    structures_of_other_versions_are_understood();
    the_last_put_calls_back_once();
    a_killed_pgmap_drains();
    a_closed_pgmap_is_refused();
    a_pools_pgmap_is_the_pools();
    a_limit_holds();
    zeroed_folios_are_kept_ready();
    return 0;
}
