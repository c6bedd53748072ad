/*
 * Folios of a device of one's own: requested by offset, counted, freed with a callback, drained.
 *
 *   cc folios.c $(pkg-config --cflags --libs daxtier) -o folios && ./folios
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

/* Runs on the thread that puts the last reference, with no lock held. */
static void on_free(void *context, const struct daxtier_freed_folio *freed)
{
    unsigned *nr_freed = (unsigned *)context;

    ++*nr_freed;
    printf("page %llu, order %u, is free again (user word %llu)\n", (unsigned long long)freed->offset,
           (unsigned)freed->order, (unsigned long long)freed->user);
}

int main(void)
{
    daxtier_pgmap pgmap;
    daxtier_folio folio, same, bulk[16];
    struct daxtier_pgmap_options options;
    struct daxtier_folio_info info;
    size_t nr_bulk, i;
    unsigned nr_freed = 0;
    int code;

    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.name = "example";
    options.on_free = on_free;
    options.context = &nr_freed;
    check(daxtier_pgmap_open("emulated:64M", &options, &pgmap), "open");

    /* The 2 MiB at page 512. Nobody needs a pointer to ask for it, and it never moves. */
    check(daxtier_folio_request(pgmap, 512, 9, &folio), "request");
    code = daxtier_folio_request(pgmap, 600, 0, &same);
    printf("page 600 as well: %s (%s)\n", daxtier_strerror(code), daxtier_last_error());

    memset(&info, 0, sizeof info);
    info.size = sizeof info;
    check(daxtier_folio_info(folio, &info), "info");
    strcpy((char *)info.address, "written through the mapping");
    check(daxtier_folio_set_user(folio, 42), "set_user");

    /* A second reference, found by an address inside. */
    check(daxtier_folio_from_address((char *)info.address + 4096, &same), "from_address");
    check(daxtier_folio_put(folio), "put");
    printf("still there: %s\n", (const char *)info.address);
    check(daxtier_folio_put(same), "put");
    printf("after the last put: %s\n", daxtier_strerror(daxtier_folio_get(folio)));

    /* As many of 16 KiB as there are, up to 16, where the library likes. */
    check(daxtier_pgmap_alloc(pgmap, 2, DAXTIER_ZERO, 16, bulk, &nr_bulk), "alloc");
    printf("%zu folios in bulk\n", nr_bulk);
    check(daxtier_pgmap_kill(pgmap), "kill");
    printf("drain: %s\n", daxtier_strerror(daxtier_pgmap_drain(pgmap, 10, NULL, 0, NULL)));
    for (i = 0; i < nr_bulk; i++)
        check(daxtier_folio_put(bulk[i]), "put");
    check(daxtier_pgmap_drain(pgmap, 1000, NULL, 0, NULL), "drain");
    check(daxtier_pgmap_close(pgmap), "close");
    printf("%u folios were freed\n", nr_freed);
    return nr_freed == 17 ? 0 : 1;
}
