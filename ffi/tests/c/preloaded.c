/* Runs under libdaxtier_preload.so with two tiers: malloc(3) and the library know each other's memory. */
#include "check.h"

int main(void)
{
    daxtier_pool pool;
    struct daxtier_placement placement;
    struct daxtier_tier_stats tier;
    void *of_malloc = malloc(100000), *of_default, *of_pool;
    size_t size = 0;

    CHECK(of_malloc != NULL);
    PREPARE(placement);
    PREPARE(tier);
    CHECK_OK(daxtier_where(DAXTIER_DEFAULT_POOL, of_malloc, &placement));
    CHECK(strcmp(placement.tier_name, "slow") == 0); /* as the environment says */
    CHECK_OK(daxtier_usable_size(DAXTIER_DEFAULT_POOL, of_malloc, &size));
    CHECK(size >= 100000);
    CHECK_OK(daxtier_tier_stats(DAXTIER_DEFAULT_POOL, 1, &tier));
    CHECK(strcmp(tier.name, "slow") == 0 && tier.used_bytes > 0);
    CHECK_CODE(daxtier_tier_stats(DAXTIER_DEFAULT_POOL, 2, &tier), DAXTIER_ENOENT);

    CHECK_OK(daxtier_malloc(DAXTIER_DEFAULT_POOL, 5000, 0, DAXTIER_ZERO | DAXTIER_TIER_FAST, &of_default));
    CHECK_OK(daxtier_where(DAXTIER_DEFAULT_POOL, of_default, &placement));
    CHECK(strcmp(placement.tier_name, "fast") == 0);
    CHECK(((char *)of_default)[4999] == 0);
    memset(of_default, 0x66, 5000);
    CHECK_OK(daxtier_realloc(DAXTIER_DEFAULT_POOL, of_default, 50000, 0, 0, &of_default));
    CHECK(((char *)of_default)[4999] == 0x66);

    CHECK_OK(daxtier_open("fast=32M", &pool));
    CHECK_OK(daxtier_malloc(pool, 100, 0, 0, &of_pool));
    CHECK_CODE(daxtier_where(pool, of_malloc, &placement), DAXTIER_EFOREIGN);
    CHECK_OK(daxtier_where(DAXTIER_DEFAULT_POOL, of_pool, &placement));
    CHECK(strcmp(placement.tier_name, "fast") == 0);
    CHECK_OK(daxtier_free(DAXTIER_DEFAULT_POOL, of_pool));
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));

    free(of_default); /* either library frees what the other allocated in the default pool */
    CHECK_OK(daxtier_free(DAXTIER_DEFAULT_POOL, of_malloc));
    return 0;
}
