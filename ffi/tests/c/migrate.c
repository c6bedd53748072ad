/* Moving blocks between tiers. */
#include "check.h"

#define SLOT ((size_t)2 << 20)

static const char *tier_of(daxtier_pool pool, const void *address)
{
    static struct daxtier_placement where;

    PREPARE(where);
    CHECK_OK(daxtier_where(pool, address, &where));
    return where.tier_name;
}

static uint64_t sum(const uint64_t *values, int count)
{
    uint64_t total = 0;

    while (count-- > 0)
        total += *values++;
    return total;
}

static void arguments_are_checked(daxtier_pool pool, void *block)
{
    struct daxtier_migration counts;
    daxtier_move request = 0;
    int on_the_stack;

    memset(&counts, 0, sizeof counts);
    CHECK_CODE(daxtier_migrate(pool, block, SLOT, DAXTIER_TIER_SLOW, &counts), DAXTIER_ESIZE);
    CHECK_CODE(daxtier_migrate(pool, block, SLOT, 3, NULL), DAXTIER_ECHOICE);
    CHECK_CODE(daxtier_migrate(pool, &on_the_stack, 4, DAXTIER_TIER_SLOW, NULL), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_migrate(pool, block, SIZE_MAX, DAXTIER_TIER_SLOW, NULL), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_migrate(12345, block, SLOT, DAXTIER_TIER_SLOW, NULL), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_migrate_async(pool, block, SLOT, DAXTIER_TIER_SLOW, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_move_wait(request, 0, NULL), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_move_cancel(request), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_move_free(request), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_pin(pool, &on_the_stack, 1), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_prefer(pool, &on_the_stack, 1, DAXTIER_TIER_SLOW), DAXTIER_EFOREIGN);
}

int main(void)
{
    static struct daxtier_migration_stats stats;
    struct daxtier_migration counts;
    daxtier_move request;
    daxtier_pool pool;
    void *block;
    unsigned char *bytes;
    int code;

    CHECK_OK(daxtier_open("fast=32M slow=emulated:64M", &pool));
    CHECK_OK(daxtier_malloc(pool, 3 * SLOT, SLOT, DAXTIER_TIER_FAST, &block));
    bytes = (unsigned char *)block;
    memset(bytes, 7, 3 * SLOT);
    PREPARE(counts);
    code = daxtier_migrate(pool, block, 3 * SLOT, DAXTIER_TIER_SLOW, &counts);
    if (code == DAXTIER_EPERM || code == -38 /* ENOSYS */) {
        printf("skipped: %s\n", daxtier_last_error());
        return 0;
    }
    CHECK_OK(code);
    CHECK(counts.moved == 3 && counts.size == sizeof counts);
    CHECK(strcmp(tier_of(pool, bytes + 2 * SLOT), "slow") == 0);
    CHECK(bytes[0] == 7 && bytes[3 * SLOT - 1] == 7);
    arguments_are_checked(pool, block);

    CHECK_OK(daxtier_pin(pool, bytes + SLOT, 1));
    CHECK_OK(daxtier_migrate_async(pool, block, 3 * SLOT, DAXTIER_TIER_FAST, &request));
    PREPARE(counts);
    CHECK_OK(daxtier_move_wait(request, 60000, &counts));
    CHECK(counts.moved == 2 && counts.kept == 1);
    CHECK_OK(daxtier_move_cancel(request));
    CHECK_OK(daxtier_move_free(request));
    CHECK_CODE(daxtier_move_free(request), DAXTIER_EHANDLE);
    CHECK(strcmp(tier_of(pool, bytes), "fast") == 0);
    CHECK(strcmp(tier_of(pool, bytes + SLOT), "slow") == 0);
    CHECK_OK(daxtier_unpin(pool, bytes + SLOT, 1));
    CHECK_OK(daxtier_prefer(pool, bytes + SLOT, 1, DAXTIER_TIER_FAST));
    CHECK_OK(daxtier_migrate(pool, bytes + SLOT, 1, DAXTIER_TIER_FAST, NULL));
    CHECK(strcmp(tier_of(pool, bytes + SLOT), "fast") == 0);
    CHECK(bytes[SLOT] == 7);

    CHECK_CODE(daxtier_migration_stats(pool, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_migration_stats(pool, &stats), DAXTIER_ESIZE);
    PREPARE(stats);
    CHECK_OK(daxtier_migration_stats(pool, &stats));
    CHECK(stats.size == sizeof stats && stats.counts.size == sizeof stats.counts);
    CHECK(stats.counts.moved == 6 && stats.counts.kept == 1);
    CHECK(sum(stats.blocked_us, 32) == 6 && sum(stats.total_us, 32) == 6);
    CHECK_CODE(daxtier_migration_stats(DAXTIER_DEFAULT_POOL, &stats), DAXTIER_ENODEV);
    CHECK_CODE(daxtier_migrate(DAXTIER_DEFAULT_POOL, block, SLOT, DAXTIER_TIER_SLOW, NULL), DAXTIER_ENODEV);

    CHECK_OK(daxtier_free(pool, block));
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
    return 0;
}
