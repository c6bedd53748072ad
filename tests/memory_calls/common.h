/* What the programs of this folder share. The last line that they print is "correct", or what went wrong. */
#ifndef COMMON_H
#define COMMON_H

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096
#define SLOT (2 << 20)

static atomic_int nr_wrong;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            printf("line %d: %s (%s)\n", __LINE__, #condition, strerror(errno));                                       \
            nr_wrong++;                                                                                                \
        }                                                                                                              \
    } while (0)

/* A block of whole slots, filled with a byte. */
static char *block(int nr_slots, int byte)
{
    void *made = NULL;
    if (posix_memalign(&made, SLOT, (size_t)nr_slots * SLOT) != 0) {
        puts("no memory");
        exit(1);
    }
    memset(made, byte, (size_t)nr_slots * SLOT);
    return made;
}

static int holds(const char *at, size_t len, int byte)
{
    for (size_t i = 0; i < len; i++)
        if (at[i] != byte)
            return 0;
    return 1;
}

#endif
