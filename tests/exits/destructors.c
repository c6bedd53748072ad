/*
 * Threads that go on allocating and freeing in the destructors of their keys, in several rounds, and hand blocks to each
 * other: what malloc keeps for a thread is gone by then or not yet.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8, GENERATIONS = 60, KEYS = 40, BLOCKS = 400, SHELF = 512 };

static pthread_key_t keys[KEYS];
static _Atomic(unsigned char *) shelf[SHELF];
static _Atomic unsigned long destructors_run;

static unsigned next(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* A block that begins with its length and is filled with what follows from it. */
static unsigned char *fill(unsigned len)
{
    unsigned char *block = malloc(len);
    if (block == NULL) abort();
    memcpy(block, &len, sizeof len);
    memset(block + sizeof len, (int)(len & 0xff), len - sizeof len);
    return block;
}

static void check_and_free(unsigned char *block)
{
    unsigned len, at;
    if (block == NULL) return;
    memcpy(&len, block, sizeof len);
    for (at = sizeof len; at < len; at++)
        if (block[at] != (len & 0xff)) abort();
    free(block);
}

static void churn(unsigned *state)
{
    unsigned at;
    for (at = 0; at < BLOCKS; at++) {
        unsigned len = 16 + next(state) % (next(state) % 16 == 0 ? 40000 : 600);
        check_and_free(atomic_exchange_explicit(&shelf[next(state) % SHELF], fill(len), memory_order_acq_rel));
    }
}

/* The value counts the rounds that are left: a destructor that sets its key anew is called again. */
static void at_end(void *value)
{
    unsigned *left = value;
    unsigned state = (unsigned)(uintptr_t)value;
    churn(&state);
    destructors_run++;
    if (--*left > 0) {
        unsigned *copy = malloc(sizeof *copy);
        if (copy == NULL) abort();
        *copy = *left;
        if (pthread_setspecific(keys[state % KEYS], copy) != 0) abort();
    }
    free(left);
}

static void *work(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed, at;
    churn(&state);
    for (at = 0; at < 3; at++) {
        unsigned *left = malloc(sizeof *left);
        if (left == NULL) abort();
        *left = 3;
        pthread_key_t key = keys[next(&state) % KEYS];
        free(pthread_getspecific(key));
        if (pthread_setspecific(key, left) != 0) abort();
    }
    return NULL;
}

int main(void)
{
    unsigned generation, at;
    for (at = 0; at < KEYS; at++)
        if (pthread_key_create(&keys[at], at_end) != 0) abort();
    for (generation = 0; generation < GENERATIONS; generation++) {
        pthread_t threads[THREADS];
        for (at = 0; at < THREADS; at++)
            if (pthread_create(&threads[at], NULL, work, (void *)(uintptr_t)(generation * THREADS + at + 1)) != 0) abort();
        for (at = 0; at < THREADS; at++) pthread_join(threads[at], NULL);
    }
    for (at = 0; at < SHELF; at++) check_and_free(shelf[at]);
    if (destructors_run < THREADS * GENERATIONS) abort();
    puts("ended well");
    return 0;
}
