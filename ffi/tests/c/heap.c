/* Blocks: sizes, alignments, flags, foreign pointers, exhaustion, advice. */
#include "check.h"

static int is_filled(const void *block, int byte, size_t size)
{
    const unsigned char *bytes = (const unsigned char *)block;
    size_t at;

    for (at = 0; at < size; at++)
        if (bytes[at] != (unsigned char)byte)
            return 0;
    return 1;
}

static void arguments_are_checked(daxtier_pool pool)
{
    void *block = NULL, *mine = NULL;
    size_t size;
    int on_the_stack;
    static char data[64];

    CHECK_CODE(daxtier_malloc(pool, 1, 0, 0, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_malloc(pool, 1, 3, 0, &block), DAXTIER_EALIGN);
    CHECK_CODE(daxtier_malloc(pool, 1, (size_t)1 << 40, 0, &block), DAXTIER_EALIGN);
    CHECK_CODE(daxtier_malloc(pool, 1, 0, 1u << 30, &block), DAXTIER_EFLAGS);
    CHECK_CODE(daxtier_malloc(pool, 1, 0, DAXTIER_MOVABLE, &block), DAXTIER_EFLAGS);
    CHECK_CODE(daxtier_malloc(pool, 1, 0, 0xF00, &block), DAXTIER_ECHOICE);
    CHECK_CODE(daxtier_malloc(pool, 1, 0, 0x4000, &block), DAXTIER_ECHOICE);
    CHECK_CODE(daxtier_malloc(pool, SIZE_MAX, 0, 0, &block), DAXTIER_ENOMEM);
    CHECK_CODE(daxtier_malloc(pool, SIZE_MAX / 2, 0, 0, &block), DAXTIER_ENOMEM);
    CHECK_CODE(daxtier_malloc(pool, (size_t)1 << 32, 0, 0, &block), DAXTIER_ENOMEM);
    CHECK_CODE(daxtier_malloc(DAXTIER_DEFAULT_POOL, 1, 0, 0, &block), DAXTIER_ENODEV);
    CHECK(block == NULL);

    CHECK_OK(daxtier_malloc(pool, 100, 0, 0, &mine));
    CHECK_CODE(daxtier_realloc(pool, mine, 0, 0, 0, &block), DAXTIER_EINVAL);
    CHECK_CODE(daxtier_realloc(pool, mine, 200, 3, 0, &block), DAXTIER_EALIGN);
    CHECK_CODE(daxtier_realloc(pool, mine, 200, 0, 0, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_realloc(pool, mine, SIZE_MAX / 2, 0, 0, &block), DAXTIER_ENOMEM);
    CHECK_CODE(daxtier_realloc(pool, &on_the_stack, 8, 0, 0, &block), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_usable_size(pool, mine, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_usable_size(pool, NULL, &size), DAXTIER_ENULL);
    CHECK_CODE(daxtier_usable_size(pool, &on_the_stack, &size), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_free(pool, &on_the_stack), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_free(pool, data), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_free(DAXTIER_DEFAULT_POOL, data), DAXTIER_EFOREIGN);
    CHECK_OK(daxtier_free(pool, NULL));
    CHECK_OK(daxtier_free(DAXTIER_DEFAULT_POOL, NULL));
    CHECK_OK(daxtier_free(pool, mine));

    /* A block of its own slots is known to be gone, and by its first byte alone. */
    CHECK_OK(daxtier_malloc(pool, 40u << 20, 2u << 20, 0, &mine));
    CHECK_CODE(daxtier_free(pool, (char *)mine + 4096), DAXTIER_EFOREIGN);
    CHECK_OK(daxtier_free(pool, mine));
    CHECK_CODE(daxtier_free(pool, mine), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_usable_size(pool, mine, &size), DAXTIER_EFOREIGN);

    block = malloc(32);
    CHECK_CODE(daxtier_free(pool, block), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_usable_size(DAXTIER_DEFAULT_POOL, block, &size), DAXTIER_EFOREIGN);
    free(block);
}

/* Nothing changes with a refusal: blocks on both sides keep their bytes and are freed once. */
static void wrong_frees_are_refused(daxtier_pool pool)
{
    static const size_t sizes[] = {1, 16, 40, 1000, 5000, 60000, 300000};
    void *block, *left, *right, *fresh = NULL, *aligned;
    void *many[2000];
    size_t i, at, size;

    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size = sizes[i];
        CHECK_OK(daxtier_malloc(pool, size, 0, 0, &left));
        CHECK_OK(daxtier_malloc(pool, size, 0, 0, &block));
        CHECK_OK(daxtier_malloc(pool, size, 0, 0, &right));
        memset(left, 0x21, size);
        memset(right, 0x22, size);
        CHECK_CODE(daxtier_free(pool, (char *)block + 8), DAXTIER_EFOREIGN);
        CHECK_CODE(daxtier_free(pool, (char *)block + size / 2 + 1), DAXTIER_EFOREIGN);
        CHECK_CODE(daxtier_realloc(pool, (char *)block + 8, 100, 0, 0, &fresh), DAXTIER_EFOREIGN);
        CHECK_CODE(daxtier_usable_size(pool, (char *)block + 8, &at), DAXTIER_EFOREIGN);
        CHECK_OK(daxtier_free(pool, block));
        /* A large block may take its memory with it, which is then foreign. */
        if (size <= 5000)
            CHECK_CODE(daxtier_free(pool, block), DAXTIER_ESTALE);
        CHECK(daxtier_free(pool, block) != DAXTIER_OK);
        CHECK(daxtier_realloc(pool, block, size * 2, 0, 0, &fresh) != DAXTIER_OK);
        CHECK(daxtier_usable_size(pool, block, &at) != DAXTIER_OK);
        CHECK(daxtier_last_error()[0] != '\0' && fresh == NULL);
        CHECK(is_filled(left, 0x21, size) && is_filled(right, 0x22, size));
        CHECK_OK(daxtier_free(pool, left));
        CHECK_OK(daxtier_free(pool, right));
    }

    /* Aligned blocks begin inside a larger one. */
    CHECK_OK(daxtier_malloc(pool, 1000, 4096, 0, &aligned));
    CHECK_CODE(daxtier_free(pool, (char *)aligned + 8), DAXTIER_EFOREIGN);
    CHECK_OK(daxtier_free(pool, aligned));
    CHECK(daxtier_free(pool, aligned) != DAXTIER_OK);

    /* Whole pages of blocks, which go back to their tier: the statistics make the heap let go of them. */
    for (i = 0; i < 2000; i++)
        CHECK_OK(daxtier_malloc(pool, 500, 0, 0, &many[i]));
    for (i = 0; i < 2000; i++)
        CHECK_OK(daxtier_free(pool, many[i]));
    for (i = 0; i < 2000; i++)
        CHECK(daxtier_free(pool, many[i]) != DAXTIER_OK);
    {
        struct daxtier_stats stats;
        PREPARE(stats);
        CHECK_OK(daxtier_stats(pool, &stats));
    }
    for (i = 0; i < 2000; i++)
        CHECK(daxtier_free(pool, many[i]) != DAXTIER_OK);

    /* What was freed is handed out again, without its mark, and is freed again. */
    for (at = 0; at < 3; at++) {
        for (i = 0; i < 2000; i++)
            CHECK_OK(daxtier_malloc(pool, 500, 0, 0, &many[i]));
        for (i = 0; i < 2000; i++)
            CHECK_OK(daxtier_free(pool, many[i]));
    }
}

static void blocks_are_as_asked(daxtier_pool pool)
{
    static const size_t sizes[] = {0, 1, 16, 100, 4096, 100000, 2u << 20, 5u << 20};
    static const size_t aligns[] = {0, 1, 16, 64, 4096, 65536, 2u << 20};
    size_t i, j, usable;
    void *block, *other;

    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (j = 0; j < sizeof aligns / sizeof aligns[0]; j++) {
            CHECK_OK(daxtier_malloc(pool, sizes[i], aligns[j], DAXTIER_ZERO, &block));
            CHECK((uintptr_t)block % (aligns[j] ? aligns[j] : 16) == 0);
            CHECK(is_filled(block, 0, sizes[i]));
            CHECK_OK(daxtier_usable_size(pool, block, &usable));
            CHECK(usable >= sizes[i]);
            memset(block, 0x77, usable);
            CHECK_OK(daxtier_free(pool, block));
        }
    }
    CHECK_OK(daxtier_malloc(pool, 0, 0, 0, &block));
    CHECK_OK(daxtier_malloc(pool, 0, 0, 0, &other));
    CHECK(block != other);
    CHECK_OK(daxtier_free(pool, block));
    CHECK_OK(daxtier_free(DAXTIER_DEFAULT_POOL, other)); /* finds the block's pool */
}

static void resizing_keeps_the_bytes(daxtier_pool pool)
{
    static const size_t sizes[] = {10, 100, 5000, 300000, 4u << 20, 70000, 20};
    size_t i, kept = 0;
    void *block = NULL;

    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        CHECK_OK(daxtier_realloc(pool, block, sizes[i], 0, 0, &block));
        CHECK(is_filled(block, 0x33, kept < sizes[i] ? kept : sizes[i]));
        memset(block, 0x33, sizes[i]);
        kept = sizes[i];
    }
    CHECK_OK(daxtier_realloc(DAXTIER_DEFAULT_POOL, block, 1000, 0, 0, &block));
    CHECK(is_filled(block, 0x33, kept));
    CHECK_OK(daxtier_free(pool, block));
}

static void tiers_are_strict(daxtier_pool pool)
{
    void *block;
    void *many[64];
    size_t got = 0;
    struct daxtier_placement placement;
    struct daxtier_stats stats;

    PREPARE(placement);
    CHECK_OK(daxtier_malloc(pool, 100, 0, DAXTIER_TIER_SLOW, &block));
    CHECK_OK(daxtier_where(pool, block, &placement));
    CHECK(placement.tier == 1 && strcmp(placement.tier_name, "slow") == 0);
    CHECK_OK(daxtier_free(pool, block));
    CHECK_OK(daxtier_malloc(pool, 100, 0, DAXTIER_TIER_FAST | DAXTIER_HINT_LONG, &block));
    CHECK_OK(daxtier_where(pool, block, &placement));
    CHECK(placement.tier == 0);
    CHECK_OK(daxtier_free(pool, block));

    while (got < 64 && daxtier_malloc(pool, 4u << 20, 0, DAXTIER_TIER_FAST, &many[got]) == DAXTIER_OK)
        got++;
    CHECK(got > 2 && got <= 16); /* the fast tier has 64 MiB */
    CHECK_CODE(daxtier_malloc(pool, 4u << 20, 0, DAXTIER_TIER_FAST, &block), DAXTIER_ENOMEM);
    CHECK(daxtier_last_error()[0] != '\0');
    PREPARE(stats);
    CHECK_OK(daxtier_stats(pool, &stats));
    CHECK(stats.failures > 0 && stats.last_failure[0] != '\0');
    CHECK_OK(daxtier_malloc(pool, 4u << 20, 0, DAXTIER_TIER_SLOW, &block));
    CHECK_OK(daxtier_free(pool, block));
    while (got > 0)
        CHECK_OK(daxtier_free(pool, many[--got]));
}

static void advice_is_checked_and_taken(daxtier_pool pool)
{
    char *block;
    void *found;
    int on_the_stack;

    CHECK_OK(daxtier_malloc(pool, 4u << 20, 4096, 0, &found));
    block = (char *)found;
    memset(block, 0x11, 4u << 20);
    CHECK_CODE(daxtier_advise(pool, block, 4096, 0), DAXTIER_ECHOICE);
    CHECK_CODE(daxtier_advise(pool, block, 4096, 16), DAXTIER_ECHOICE);
    CHECK_CODE(daxtier_advise(pool, NULL, 4096, DAXTIER_ADVICE_POPULATE), DAXTIER_ENULL);
    CHECK_CODE(daxtier_advise(pool, block, SIZE_MAX, DAXTIER_ADVICE_POPULATE), DAXTIER_EINVAL);
    CHECK_CODE(daxtier_advise(pool, (char *)((uintptr_t)&on_the_stack & ~(uintptr_t)4095), 4096, DAXTIER_ADVICE_DISCARD),
               DAXTIER_EFOREIGN);
    CHECK_OK(daxtier_advise(pool, block, 4u << 20, DAXTIER_ADVICE_POPULATE));
    CHECK(is_filled(block, 0x11, 4u << 20));
    CHECK_OK(daxtier_advise(pool, block + 100, 3 * 4096, DAXTIER_ADVICE_DISCARD));
    CHECK(is_filled(block, 0x11, 4096));
    CHECK(is_filled(block + 4096, 0, 2 * 4096));
    CHECK(is_filled(block + 3 * 4096, 0x11, 4096));
    CHECK_OK(daxtier_free(pool, block));
}

int main(void)
{
    daxtier_pool pool;

    CHECK_OK(daxtier_open("fast=64M slow=emulated:128M", &pool));
    arguments_are_checked(pool);
    wrong_frees_are_refused(pool);
    blocks_are_as_asked(pool);
    resizing_keeps_the_bytes(pool);
    tiers_are_strict(pool);
    advice_is_checked_and_taken(pool);
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
    return 0;
}
