/* Folios: request by offset, alloc by order, references, addresses. */
#include "check.h"

static const uint64_t NR_PAGES = (64u << 20) / 4096;

static void requests_are_checked(daxtier_pgmap pgmap)
{
    daxtier_folio folio = 99, other = 99;

    CHECK_CODE(daxtier_folio_request(pgmap, 0, 19, &folio), DAXTIER_EORDER);
    CHECK_CODE(daxtier_folio_request(pgmap, 0, UINT32_MAX, &folio), DAXTIER_EORDER);
    CHECK_CODE(daxtier_folio_request(pgmap, NR_PAGES, 0, &folio), DAXTIER_EOFFSET);
    CHECK_CODE(daxtier_folio_request(pgmap, NR_PAGES - 8, 4, &folio), DAXTIER_EOFFSET);
    CHECK_CODE(daxtier_folio_request(pgmap, NR_PAGES + 512, 9, &folio), DAXTIER_EOFFSET);
    CHECK_CODE(daxtier_folio_request(pgmap, UINT64_MAX, 0, &folio), DAXTIER_EOFFSET);
    CHECK_CODE(daxtier_folio_request(pgmap, UINT64_MAX & ~(uint64_t)511, 9, &folio), DAXTIER_EOFFSET);
    CHECK_CODE(daxtier_folio_request(pgmap, 1, 1, &folio), DAXTIER_EALIGN);
    CHECK_CODE(daxtier_folio_request(pgmap, 256, 9, &folio), DAXTIER_EALIGN);
    CHECK_CODE(daxtier_folio_request(pgmap, 0, 0, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_folio_request(0, 0, 0, &folio), DAXTIER_EHANDLE);
    CHECK(folio == 99);

    CHECK_OK(daxtier_folio_request(pgmap, 512, 9, &folio));
    CHECK_CODE(daxtier_folio_request(pgmap, 512, 9, &other), DAXTIER_EBUSY);
    CHECK_CODE(daxtier_folio_request(pgmap, 700, 0, &other), DAXTIER_EBUSY);
    CHECK_CODE(daxtier_folio_request(pgmap, 0, 10, &other), DAXTIER_EBUSY);
    CHECK(other == 99);
    CHECK_OK(daxtier_folio_put(folio));

    /* The order of the last use does not leak. */
    CHECK_OK(daxtier_folio_request(pgmap, 700, 0, &folio));
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_folio_request(pgmap, 512, 9, &folio));
    CHECK_OK(daxtier_folio_put(folio));
}

static void references_are_counted(daxtier_pgmap pgmap)
{
    daxtier_folio folio, same, next;
    struct daxtier_folio_info info;

    PREPARE(info);
    CHECK_OK(daxtier_folio_request(pgmap, 16, 4, &folio));
    CHECK_OK(daxtier_folio_get(folio));
    CHECK_OK(daxtier_folio_try_get(pgmap, 20, &same)); /* by any of its pages */
    CHECK(same == folio);
    CHECK_OK(daxtier_folio_info(folio, &info));
    CHECK(info.folio == folio && info.pgmap == pgmap && info.offset == 16 && info.order == 4);
    CHECK(info.ref_count == 3 && info.user == 0 && info.tier == -1 && info.address != NULL);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_folio_put(folio));

    CHECK_CODE(daxtier_folio_put(folio), DAXTIER_ESTALE);
    CHECK_CODE(daxtier_folio_get(folio), DAXTIER_ESTALE);
    CHECK_CODE(daxtier_folio_info(folio, &info), DAXTIER_ESTALE);
    CHECK_CODE(daxtier_folio_set_user(folio, 1), DAXTIER_ESTALE);
    CHECK_CODE(daxtier_folio_try_get(pgmap, 20, &same), DAXTIER_ENOENT);
    CHECK_CODE(daxtier_folio_try_get(pgmap, NR_PAGES, &same), DAXTIER_ENOENT);
    CHECK_CODE(daxtier_folio_try_get(pgmap, UINT64_MAX, &same), DAXTIER_ENOENT);
    CHECK_CODE(daxtier_folio_try_get(pgmap, 0, NULL), DAXTIER_ENULL);

    /* A stale number does not reach the next folio in the same place. */
    CHECK_OK(daxtier_folio_request(pgmap, 16, 4, &next));
    CHECK(next != folio);
    CHECK_CODE(daxtier_folio_put(folio), DAXTIER_ESTALE);
    CHECK_OK(daxtier_folio_info(next, &info));
    CHECK(info.ref_count == 1);
    CHECK_CODE(daxtier_folio_info(next, NULL), DAXTIER_ENULL);
    CHECK_OK(daxtier_folio_put(next));

    CHECK_CODE(daxtier_folio_put(0), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_folio_get(0), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_folio_info(0, &info), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_folio_set_user(0, 1), DAXTIER_EHANDLE);
    CHECK_CODE(daxtier_folio_put(1), DAXTIER_ESTALE);
}

static void addresses_lead_back(daxtier_pgmap pgmap)
{
    daxtier_folio folio, found;
    struct daxtier_folio_info info;
    char *bytes;
    int on_the_stack;

    PREPARE(info);
    CHECK_OK(daxtier_folio_request(pgmap, 1024, 9, &folio));
    CHECK_OK(daxtier_folio_info(folio, &info));
    bytes = (char *)info.address;
    CHECK((uintptr_t)bytes % (2u << 20) == 0);
    memset(bytes, 0x5A, 2u << 20);
    CHECK_OK(daxtier_folio_from_address(bytes + 12345, &found));
    CHECK(found == folio);
    CHECK_OK(daxtier_folio_put(found));
    CHECK_CODE(daxtier_folio_from_address(bytes + (2u << 20), &found), DAXTIER_ENOENT);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_CODE(daxtier_folio_from_address(bytes, &found), DAXTIER_ENOENT);
    CHECK_CODE(daxtier_folio_from_address(&on_the_stack, &found), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_folio_from_address(NULL, &found), DAXTIER_EFOREIGN);
    CHECK_CODE(daxtier_folio_from_address(bytes, NULL), DAXTIER_ENULL);
}

static void bulk_requests_are_checked(daxtier_pgmap pgmap)
{
    daxtier_folio folios[4];
    size_t got = 99, i;
    struct daxtier_folio_info info;

    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 19, 0, 4, folios, &got), DAXTIER_EORDER);
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 18, 0, 4, folios, &got), DAXTIER_EORDER); /* larger than the device */
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 0, 0, 0, folios, &got), DAXTIER_EINVAL);
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 0, 0, 4, NULL, &got), DAXTIER_ENULL);
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 0, 0, 4, folios, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 0, DAXTIER_MOVABLE, 4, folios, &got), DAXTIER_EFLAGS);
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 0, DAXTIER_TIER_FAST, 4, folios, &got), DAXTIER_EFLAGS);
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 0, 1u << 31, 4, folios, &got), DAXTIER_EFLAGS);
    CHECK_CODE(daxtier_pgmap_alloc(pgmap, 0, DAXTIER_HINT_SHORT | DAXTIER_HINT_LONG, 4, folios, &got), DAXTIER_ECHOICE);
    CHECK(got == 99);

    PREPARE(info);
    CHECK_OK(daxtier_pgmap_alloc(pgmap, 2, DAXTIER_ZERO | DAXTIER_HINT_LONG, 4, folios, &got));
    CHECK(got == 4);
    for (i = 0; i < got; i++) {
        const char *bytes;
        size_t at;

        CHECK_OK(daxtier_folio_info(folios[i], &info));
        CHECK(info.order == 2 && info.ref_count == 1 && info.offset % 4 == 0);
        bytes = (const char *)info.address;
        for (at = 0; at < 4 * DAXTIER_PAGE_SIZE; at++)
            CHECK(bytes[at] == 0);
        CHECK_OK(daxtier_folio_put(folios[i]));
    }
}

static void folios_of_a_pool_lie_where_they_should(void)
{
    daxtier_pool pool;
    daxtier_folio folio = 99, many[64];
    struct daxtier_folio_info info;
    size_t got, i;

    CHECK_OK(daxtier_open("fast=32M slow=emulated:64M", &pool));
    CHECK_CODE(daxtier_folio_alloc(pool, 19, 0, &folio), DAXTIER_EORDER);
    CHECK_CODE(daxtier_folio_alloc(pool, 0, DAXTIER_MOVABLE, &folio), DAXTIER_EORDER);
    CHECK_CODE(daxtier_folio_alloc(pool, 0, 0x80, &folio), DAXTIER_EFLAGS);
    CHECK_CODE(daxtier_folio_alloc(pool, 0, DAXTIER_TIER_FAST | DAXTIER_TIER_SLOW, &folio), DAXTIER_ECHOICE);
    CHECK_CODE(daxtier_folio_alloc(pool, 0, 0, NULL), DAXTIER_ENULL);
    CHECK_CODE(daxtier_folio_alloc_bulk(pool, 0, 0, 0, many, &got), DAXTIER_EINVAL);
    CHECK_CODE(daxtier_folio_alloc_bulk(pool, 0, 0, 1, NULL, &got), DAXTIER_ENULL);
    CHECK_CODE(daxtier_folio_alloc_bulk(pool, 0, 0, 1, many, NULL), DAXTIER_ENULL);
    CHECK(folio == 99);

    PREPARE(info);
    CHECK_OK(daxtier_folio_alloc(pool, 3, DAXTIER_TIER_SLOW | DAXTIER_ZERO, &folio));
    CHECK_OK(daxtier_folio_info(folio, &info));
    CHECK(info.tier == 1 && info.order == 3 && ((char *)info.address)[8 * 4096 - 1] == 0);
    CHECK_OK(daxtier_folio_put(folio));
    CHECK_OK(daxtier_folio_alloc(pool, 9, DAXTIER_TIER_FAST, &folio));
    CHECK_OK(daxtier_folio_info(folio, &info));
    CHECK(info.tier == 0);
    CHECK_OK(daxtier_folio_put(folio));

    /* Strictly one tier: 64 MiB hold 32 huge folios and no more. */
    CHECK_OK(daxtier_folio_alloc_bulk(pool, 9, DAXTIER_TIER_SLOW, 64, many, &got));
    CHECK(got > 16 && got <= 32);
    CHECK_CODE(daxtier_folio_alloc(pool, 9, DAXTIER_TIER_SLOW, &folio), DAXTIER_ENOMEM);
    for (i = 0; i < got; i++)
        CHECK_OK(daxtier_folio_put(many[i]));
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));

    CHECK_OK(daxtier_open("fast=32M", &pool));
    CHECK_CODE(daxtier_folio_alloc(pool, 0, DAXTIER_TIER_SLOW, &folio), DAXTIER_ENODEV);
    CHECK_OK(daxtier_close(pool, NULL, 0, NULL));
}

int main(void)
{
    daxtier_pgmap pgmap;

    CHECK_OK(daxtier_pgmap_open("emulated:64M", NULL, &pgmap));
    requests_are_checked(pgmap);
    references_are_counted(pgmap);
    addresses_lead_back(pgmap);
    bulk_requests_are_checked(pgmap);
    CHECK_OK(daxtier_pgmap_close(pgmap));
    folios_of_a_pool_lie_where_they_should();
    return 0;
}
