/* Frees a block twice, three times, resizes a freed one and the inside of another, and goes on as if nothing were. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* So that no compiler knows what becomes of a block. */
static void *volatile kept;

int main(void)
{
    char *first, *second, *other;

    kept = first = malloc(100);
    kept = second = malloc(100);
    memset(second, 5, 100);
    free(first);
    first = kept ? first : NULL;
    free((void *)(uintptr_t)first);
    free((void *)(uintptr_t)first);
    if (realloc((void *)(uintptr_t)first, 200) != NULL) return 2;
    if (realloc(second + 16, 200) != NULL) return 3;
    /* The freed block is handed out at most once. */
    kept = first = malloc(100);
    kept = other = malloc(100);
    if (first == other || first == second || other == second) return 4;
    memset(first, 1, 100);
    memset(other, 2, 100);
    if (second[99] != 5 || first[0] != 1) return 5;
    puts("went on");
    return 0;
}
