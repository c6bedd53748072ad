/*
 * Where does each byte lie? An array that is larger than the fast tier, and its map.
 *
 *   cc where.c $(pkg-config --cflags --libs daxtier) -o where && ./where
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
    enum { BLOCKS = 64, BLOCK = 1 << 20 };
    daxtier_pool pool;
    void *blocks[BLOCKS];
    struct daxtier_placement placement;
    char map[BLOCKS + 1];
    int i, on_the_stack, code;

    check(daxtier_open("fast=32M slow=emulated:128M", &pool), "open");
    memset(&placement, 0, sizeof placement);
    placement.size = sizeof placement;
    for (i = 0; i < BLOCKS; i++) {
        check(daxtier_malloc(pool, BLOCK, 0, 0, &blocks[i]), "malloc");
        memset(blocks[i], i, BLOCK);
        check(daxtier_where(pool, blocks[i], &placement), "where");
        map[i] = placement.tier == 0 ? 'F' : 's';
    }
    map[BLOCKS] = '\0';
    printf("one letter per MiB, F fast, s slow:\n%s\n", map);
    printf("the last one: tier %s, device %s, page %llu\n", placement.tier_name, placement.device,
           (unsigned long long)placement.offset);

    code = daxtier_where(pool, &on_the_stack, &placement);
    printf("a variable on the stack: %s\n", daxtier_strerror(code));

    for (i = 0; i < BLOCKS; i++)
        check(daxtier_free(pool, blocks[i]), "free");
    check(daxtier_close(pool, NULL, 0, NULL), "close");
    return 0;
}
