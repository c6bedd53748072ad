/* Runs under libdaxtier_preload.so with two tiers: the library moves blocks of malloc(3), in the preload library's pool. */
#include "check.h"

#define SLOT ((size_t)2 << 20)

static const char *tier_of(const void *address)
{
    static struct daxtier_placement where;

    PREPARE(where);
    CHECK_OK(daxtier_where(DAXTIER_DEFAULT_POOL, address, &where));
    return where.tier_name;
}

int main(void)
{
    static struct daxtier_migration_stats stats;
    struct daxtier_migration counts;
    daxtier_move request = 0;
    unsigned char *block = (unsigned char *)aligned_alloc(SLOT, 3 * SLOT);
    int on_the_stack, code;

    CHECK(block != NULL);
    memset(block, 7, 3 * SLOT);
    CHECK(strcmp(tier_of(block), "slow") == 0);
    PREPARE(counts);
    code = daxtier_migrate(DAXTIER_DEFAULT_POOL, block, 3 * SLOT, DAXTIER_TIER_FAST, &counts);
    if (code == DAXTIER_EPERM || code == -38 /* ENOSYS */) {
        printf("skipped: %s\n", daxtier_last_error());
        return 0;
    }
    CHECK_OK(code);
    CHECK(counts.moved == 3);
    CHECK(strcmp(tier_of(block + 2 * SLOT), "fast") == 0);
    CHECK(block[0] == 7 && block[3 * SLOT - 1] == 7);

    CHECK_OK(daxtier_pin(DAXTIER_DEFAULT_POOL, block + SLOT, 1));
    CHECK_OK(daxtier_migrate_async(DAXTIER_DEFAULT_POOL, block, 3 * SLOT, DAXTIER_TIER_SLOW, &request));
    PREPARE(counts);
    CHECK_OK(daxtier_move_wait(request, 60000, &counts));
    CHECK(counts.moved == 2 && counts.kept == 1);
    CHECK(strcmp(tier_of(block), "slow") == 0 && strcmp(tier_of(block + SLOT), "fast") == 0);
    CHECK_OK(daxtier_move_cancel(request));
    CHECK_OK(daxtier_move_free(request));
    CHECK_CODE(daxtier_move_free(request), DAXTIER_EHANDLE);
    CHECK_OK(daxtier_unpin(DAXTIER_DEFAULT_POOL, block + SLOT, 1));
    CHECK_OK(daxtier_prefer(DAXTIER_DEFAULT_POOL, block + SLOT, 1, DAXTIER_TIER_SLOW));
    CHECK_OK(daxtier_migrate(DAXTIER_DEFAULT_POOL, block + SLOT, 1, DAXTIER_TIER_SLOW, NULL));
    CHECK(strcmp(tier_of(block + SLOT), "slow") == 0);

    PREPARE(stats);
    CHECK_OK(daxtier_migration_stats(DAXTIER_DEFAULT_POOL, &stats));
    CHECK(stats.counts.moved == 6 && stats.counts.kept == 1);
    CHECK_CODE(daxtier_migrate(DAXTIER_DEFAULT_POOL, &on_the_stack, 4, DAXTIER_TIER_SLOW, NULL), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_pin(DAXTIER_DEFAULT_POOL, &on_the_stack, 1), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_migrate(DAXTIER_DEFAULT_POOL, block, SLOT, 3, NULL), DAXTIER_ECHOICE);
    CHECK(block[0] == 7 && block[SLOT] == 7 && block[3 * SLOT - 1] == 7);
    free(block);
    return 0;
}
