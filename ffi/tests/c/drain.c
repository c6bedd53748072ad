/* Devices that come and go while a pool is in use. */
#include "check.h"

#define SLOT ((size_t)2 << 20)

static void arguments_are_checked(daxtier_pool pool)
{
    struct daxtier_held held;
    size_t nr_held = 77;
    uint64_t bytes = 77;

    memset(&held, 0, sizeof held);
    CHECK_CODE(daxtier_device_drain(pool, "emulated:16M", 0, &held, 1, NULL), DAXTIER_ESIZE);
    CHECK_CODE(daxtier_device_drain(pool, "emulated:16M", 0, NULL, 1, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_device_drain(pool, NULL, 0, NULL, 0, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_device_drain(pool, "/dev/dax9.9", 0, NULL, 0, &nr_held), DAXTIER_ENODEV);
    CHECK(nr_held == 77);
    CHECK_CODE(daxtier_device_drain(12345, "emulated:16M", 0, NULL, 0, NULL), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_device_add(pool, "emulated:"), DAXTIER_ECONFIG);
    CHECK_CODE(daxtier_device_add(pool, "/dev/null"), DAXTIER_ENODEV);
    CHECK_CODE(daxtier_device_add(pool, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_device_resume(pool, "emulated:16M"), DAXTIER_EINVAL);
    CHECK_CODE(daxtier_device_remove(pool, "emulated:16M"), DAXTIER_EINVAL);
    CHECK_CODE(daxtier_device_remove(pool, "dram"), DAXTIER_ENODEV);
    CHECK_CODE(daxtier_device_resize(pool, "/dev/dax9.9", 0, &bytes), DAXTIER_ENODEV);
    CHECK_CODE(daxtier_device_resize(pool, NULL, 0, &bytes), DAXTIER_ENULL);
    CHECK_CODE(daxtier_device_resize(12345, "emulated:16M", 0, &bytes), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_release_idle(12345, &bytes), DAXTIER_EHANDLE);
    CHECK(bytes == 77);
}

/* A share that shrinks, grows, and is given back. */
static void the_share_of_a_device_changes(daxtier_pool pool)
{
    struct daxtier_tier_stats slow;
    daxtier_folio folio;
    uint64_t bytes;

    CHECK_OK(daxtier_folio_alloc(pool, 9, DAXTIER_TIER_SLOW, &folio));
    CHECK_OK(daxtier_device_resize(pool, "emulated:16M", 2 * SLOT, &bytes));
    CHECK(bytes == 6 * SLOT);
    CHECK_OK(daxtier_release_idle(pool, &bytes));
    CHECK(bytes == 0);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_release_idle(pool, &bytes));
    CHECK(bytes == 8 * SLOT);
    PREPARE(slow);
    CHECK_OK(daxtier_tier_stats(pool, 1, &slow));
    CHECK(slow.capacity_bytes == 2 * SLOT);
    CHECK_OK(daxtier_device_resize(pool, "emulated:16M", UINT64_MAX, NULL));
    CHECK_OK(daxtier_release_idle(pool, NULL));
    PREPARE(slow);
    CHECK_OK(daxtier_tier_stats(pool, 1, &slow));
    CHECK(slow.capacity_bytes == 8 * SLOT);
}

int main(void)
{
    struct daxtier_held held[2];
    struct daxtier_tier_stats slow;
    daxtier_folio folio;
    daxtier_pool pool;
    size_t nr_held;

    CHECK_OK(daxtier_open("fast=16M slow=emulated:16M migrate=off", &pool));
    arguments_are_checked(pool);
    the_share_of_a_device_changes(pool);
    CHECK_OK(daxtier_folio_alloc(pool, 9, DAXTIER_TIER_SLOW, &folio));
    CHECK_OK(daxtier_folio_set_user(folio, 99));
    CHECK_OK(daxtier_device_add(pool, "emulated:32M"));
    PREPARE(held[0]);
    CHECK_CODE(daxtier_device_drain(pool, "emulated:16M", 0, held, 2, &nr_held), DAXTIER_ETIMEDOUT);
    CHECK(nr_held == 1 && held[0].holder == DAXTIER_HELD_FOLIO && held[0].len_bytes == SLOT);
    CHECK(held[0].user == 99 && held[0].ref_count == 1 && held[0].reason[0] != '\0');
    CHECK_CODE(daxtier_device_remove(pool, "emulated:16M"), DAXTIER_EBUSY);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_device_drain(pool, "emulated:16M", 10000, NULL, 0, &nr_held));
    CHECK(nr_held == 0);
    CHECK_OK(daxtier_device_resume(pool, "emulated:16M"));
    CHECK_OK(daxtier_device_drain(pool, "emulated:16M", 10000, NULL, 0, NULL));
    CHECK_OK(daxtier_device_remove(pool, "emulated:16M"));
    PREPARE(slow);
    CHECK_OK(daxtier_tier_stats(pool, 1, &slow));
    CHECK(slow.capacity_bytes == (uint64_t)32 << 20);
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
    return 0;
}
