/* Checks for the tests of the C interface: each prints what it saw and ends the test. */
#ifndef CHECK_H
#define CHECK_H

#include <daxtier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define CHECK_CODE(call, expected) check_code((call), (expected), #call, __FILE__, __LINE__)
#define CHECK_OK(call) CHECK_CODE(call, DAXTIER_OK)

/* Sets a structure to zero and its size. */
#define PREPARE(structure)                                                                         \
    do {                                                                                           \
        memset(&(structure), 0, sizeof(structure));                                                \
        (structure).size = sizeof(structure);                                                      \
    } while (0)

static inline void check_code(int code, int expected, const char *call, const char *file, int line)
{
    if (code == expected)
        return;
    fprintf(stderr, "%s:%d: %s returned %d (%s), expected %d (%s); last error: %s\n", file, line, call, code,
            daxtier_strerror(code), expected, daxtier_strerror(expected), daxtier_last_error());
    exit(1);
}

#endif
