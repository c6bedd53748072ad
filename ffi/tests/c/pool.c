/* Pools: opening, what a wrong configuration says, closing in use, figures, use after close. */
#include "check.h"

#include <unistd.h>

static void wrong_configurations_are_named(void)
{
    static const struct {
        const char *config;
        const char *named;
    } wrong[] = {
        {"fast=64M policy=filll", "filll"},   {"fast=64M slow=emulated:0", "0"},  {"fast=lots", "lots"},
        {"quick=64M", "quick"},               {"fast=64M slow=tape:4G", "tape"},  {"fast=64M fast=32M", "fast"},
        {"fast=64M policy=bind=slow", "slow"}, {"fast=64M slow=emulated:5M", "5"}, {"", ""},
        {"\xff\xfe", "UTF-8"},
    };
    daxtier_pool pool = 99;
    size_t i;

    for (i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK_CODE(daxtier_open(wrong[i].config, &pool), DAXTIER_ECONFIG);
        if (!strstr(daxtier_last_error(), wrong[i].named)) {
            fprintf(stderr, "%s: %s\n", wrong[i].config, daxtier_last_error());
            exit(1);
        }
    }
    CHECK_CODE(daxtier_open(NULL, &pool), DAXTIER_ENULL);
    CHECK_CODE(daxtier_open("fast=64M", NULL), DAXTIER_ENULL);
    CHECK(daxtier_open("fast=64M slow=/dev/dax999.999", &pool) < 0);
    CHECK(strstr(daxtier_last_error(), "dax999.999") != NULL);
    CHECK(daxtier_open("fast=64M slow=/dev/null", &pool) < 0);
    CHECK(strstr(daxtier_last_error(), "/dev/null") != NULL);
    CHECK(daxtier_open("fast=4096T", &pool) < 0);
    CHECK(pool == 99); /* outputs are written on success only */
}

static void a_closed_pool_is_refused(void)
{
    daxtier_pool pool, other;
    daxtier_folio folio;
    struct daxtier_stats stats;
    struct daxtier_tier_stats tier;
    struct daxtier_placement placement;
    size_t count;
    void *block;
    int on_the_stack;

    CHECK_OK(daxtier_open("fast=32M", &pool));
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
    CHECK_OK(daxtier_open("fast=32M", &other));
    CHECK(pool != other);
    PREPARE(stats);
    PREPARE(tier);
    PREPARE(placement);
    CHECK_CODE(daxtier_close(pool, NULL, 0, NULL), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_stats(pool, &stats), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_tier_stats(pool, 0, &tier), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_where(pool, &on_the_stack, &placement), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_malloc(pool, 1, 0, 0, &block), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_realloc(pool, NULL, 1, 0, 0, &block), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_free(pool, &on_the_stack), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_usable_size(pool, &on_the_stack, &count), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_advise(pool, &on_the_stack, 1, DAXTIER_ADVICE_POPULATE), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_folio_alloc(pool, 0, 0, &folio), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_folio_alloc_bulk(pool, 0, 0, 1, &folio, &count), DAXTIER_EHANDLE);
    /* Numbers that are no pool at all. */
    CHECK_CODE(daxtier_close(0, NULL, 0, NULL), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_close(12345, NULL, 0, NULL), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_close(~(daxtier_pool)0, NULL, 0, NULL), DAXTIER_EHANDLE);
    CHECK_OK(daxtier_close(other, NULL, 0, NULL));
}

static void a_pool_in_use_stays_open_and_lists_its_folios(void)
{
    daxtier_pool pool;
    daxtier_folio folios[3];
    struct daxtier_folio_info live[2];
    size_t nr_live = 0, got = 0, i;
    void *block;

    CHECK_OK(daxtier_open("fast=64M slow=emulated:128M", &pool));
    CHECK_OK(daxtier_folio_alloc_bulk(pool, 1, DAXTIER_TIER_SLOW, 3, folios, &got));
    CHECK(got == 3);
    CHECK_OK(daxtier_folio_set_user(folios[0], 77));
    PREPARE(live[0]);
    live[1] = live[0];
    CHECK_CODE(daxtier_close(pool, live, 2, &nr_live), DAXTIER_EBUSY);
    CHECK(nr_live == 3);
    for (i = 0; i < 2; i++) {
        CHECK(live[i].size == sizeof live[i]);
        CHECK(live[i].order == 1 && live[i].ref_count == 1 && live[i].tier == 1);
        CHECK(live[i].folio == folios[0] || live[i].folio == folios[1] || live[i].folio == folios[2]);
        CHECK((live[i].user == 77) == (live[i].folio == folios[0]));
    }
    CHECK_CODE(daxtier_close(pool, NULL, 0, NULL), DAXTIER_EBUSY);
    CHECK_CODE(daxtier_close(pool, NULL, 2, &nr_live), DAXTIER_ENULL);
    live[0].size = 12;
    CHECK_CODE(daxtier_close(pool, live, 2, &nr_live), DAXTIER_ESIZE);
    for (i = 0; i < 3; i++)
        CHECK_OK(daxtier_folio_put(folios[i]));

    /* A block is no folio of the caller's, but keeps the pool open just so. */
    CHECK_OK(daxtier_malloc(pool, 1000, 0, 0, &block));
    nr_live = 99;
    CHECK_CODE(daxtier_close(pool, NULL, 0, &nr_live), DAXTIER_EBUSY);
    CHECK(nr_live == 0);
    CHECK_OK(daxtier_free(pool, block));
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
}

static void figures_add_up(void)
{
    daxtier_pool pool;
    daxtier_folio folio;
    struct daxtier_stats stats;
    struct daxtier_tier_stats before, after;

    CHECK_OK(daxtier_open("fast=64M slow=emulated:128M policy=preferred=slow", &pool));
    PREPARE(stats);
    CHECK_OK(daxtier_stats(pool, &stats));
    CHECK(stats.nr_tiers == 2);
    CHECK(stats.pid == (uint32_t)getpid());
    CHECK(strcmp(stats.policy, "preferred=slow") == 0);

    PREPARE(before);
    PREPARE(after);
    CHECK_OK(daxtier_tier_stats(pool, 1, &before));
    CHECK(strcmp(before.name, "slow") == 0 && strcmp(before.kind, "emulated") == 0);
    CHECK(before.capacity_bytes == 128u << 20);
    CHECK_OK(daxtier_folio_alloc(pool, 9, 0, &folio));
    CHECK_OK(daxtier_tier_stats(pool, 1, &after));
    CHECK(after.folios_by_order[9] == before.folios_by_order[9] + 1);
    CHECK(after.used_bytes == before.used_bytes + (2u << 20));
    CHECK(after.peak_bytes >= after.used_bytes);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_tier_stats(pool, 1, &after));
    CHECK(after.used_bytes == before.used_bytes);
    CHECK_OK(daxtier_tier_stats(pool, 0, &after));
    CHECK(strcmp(after.name, "fast") == 0 && strcmp(after.kind, "dram") == 0);

    CHECK_CODE(daxtier_tier_stats(pool, 2, &after), DAXTIER_ENOENT);
    CHECK_CODE(daxtier_tier_stats(pool, 0, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_stats(pool, NULL), DAXTIER_ENULL);
    stats.size = 3;
    CHECK_CODE(daxtier_stats(pool, &stats), DAXTIER_ESIZE);
    after.size = 0;
    CHECK_CODE(daxtier_tier_stats(pool, 0, &after), DAXTIER_ESIZE);
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
}

static void two_pools_keep_apart(void)
{
    daxtier_pool a, b;
    void *of_a, *of_b;
    struct daxtier_placement placement;

    CHECK_OK(daxtier_open("fast=32M", &a));
    CHECK_OK(daxtier_open("fast=32M slow=emulated:64M policy=bind=slow", &b));
    CHECK_OK(daxtier_malloc(a, 100, 0, 0, &of_a));
    CHECK_OK(daxtier_malloc(b, 100, 0, 0, &of_b));
    PREPARE(placement);
    CHECK_OK(daxtier_where(a, of_a, &placement));
    CHECK(strcmp(placement.tier_name, "fast") == 0 && placement.tier == 0);
    CHECK_OK(daxtier_where(b, of_b, &placement));
    CHECK(strcmp(placement.tier_name, "slow") == 0 && placement.tier == 1);
    CHECK(strncmp(placement.device, "emulated:", 9) == 0);
    CHECK_CODE(daxtier_where(a, of_b, &placement), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_where(b, of_a, &placement), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_where(a, &placement, &placement), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_where(a, NULL, &placement), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_where(a, of_a, NULL), DAXTIER_ENULL);
    CHECK_OK(daxtier_where(DAXTIER_DEFAULT_POOL, of_a, &placement));
    CHECK_OK(daxtier_where(DAXTIER_DEFAULT_POOL, of_b, &placement));
    CHECK_OK(daxtier_free(a, of_a));
    CHECK_OK(daxtier_free(b, of_b));
    CHECK_OK(daxtier_close(b, NULL, 0, NULL));
    CHECK_OK(daxtier_close(a, NULL, 0, NULL));
}

static void devices_are_listed(void)
{
    struct daxtier_device_info devices[4];
    size_t count = 99;

    CHECK_OK(daxtier_device_list(NULL, 0, &count));
    CHECK(count != 99);
    PREPARE(devices[0]);
    CHECK_OK(daxtier_device_list(devices, 4, &count));
    if (count > 0)
        CHECK(strncmp(devices[0].path, "/dev/", 5) == 0 && devices[0].state[0] != '\0');
    CHECK_CODE(daxtier_device_list(NULL, 4, &count), DAXTIER_ENULL);
    CHECK_CODE(daxtier_device_list(devices, 4, NULL), DAXTIER_ENULL);
    devices[0].size = 8;
    CHECK_CODE(daxtier_device_list(devices, 4, &count), DAXTIER_ESIZE);
}

int main(void)
{
    wrong_configurations_are_named();
    a_closed_pool_is_refused();
    a_pool_in_use_stays_open_and_lists_its_folios();
    figures_add_up();
    two_pools_keep_apart();
    devices_are_listed();
    return 0;
}
