/* Forks while threads come and go and allocate without pause. usage: storm FORKS [FORKERS]
 *
 * Threads are started, allocate and free blocks of all sizes, hand some to each other through a mailbox, and end. Meanwhile
 * FORKERS threads fork. A child frees blocks that it inherited, allocates its own, starts a thread, forks once more, and
 * ends. Every block carries a pattern that is checked before it is freed, on both sides. A child or a parent that makes no
 * progress is reported as hung.
 * Prints "correct", or what went wrong; the exit status is 0, 1 (wrong) or 3 (hung). */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHILD_LIMIT_S 30
#define PARENT_LIMIT_S 90
#define NR_MAIL 256
#define NR_SPAWNERS 3

struct block {
    size_t size; /* of all of it */
    unsigned char seed;
    unsigned char bytes[];
};

static _Atomic(struct block *) mailbox[NR_MAIL];
static atomic_int stop;
static atomic_long nr_wrong, nr_forks, nr_threads;

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Small blocks mostly, then medium ones, a few of megabytes. */
static size_t any_size(uint64_t *state)
{
    uint64_t r = next_random(state);
    switch (r % 64) {
    case 0:
        return 32 + (r >> 8) % (3 << 20);
    case 1: case 2: case 3:
        return 32 + (r >> 8) % (200 << 10);
    case 4: case 5: case 6: case 7: case 8: case 9: case 10:
        return 32 + (r >> 8) % 16000;
    default:
        return 32 + (r >> 8) % 900;
    }
}

static struct block *make(uint64_t *state)
{
    size_t size = any_size(state);
    struct block *block = next_random(state) % 8 == 0 ? calloc(1, size) : malloc(size);
    if (block == NULL)
        return NULL;
    block->size = size;
    block->seed = (unsigned char)size ^ 0x5a;
    /* The first and the last bytes are enough to notice a block that two own. */
    size_t edge = size - sizeof *block < 64 ? size - sizeof *block : 64;
    memset(block->bytes, block->seed, edge);
    ((unsigned char *)block)[size - 1] = block->seed;
    return block;
}

static void check_and_free(struct block *block, const char *where)
{
    if (block == NULL)
        return;
    size_t size = block->size, edge = size - sizeof *block < 64 ? size - sizeof *block : 64;
    int is_whole = block->seed == (unsigned char)((unsigned char)size ^ 0x5a)
                   && ((unsigned char *)block)[size - 1] == block->seed;
    for (size_t i = 0; is_whole && i < edge; i++)
        is_whole = block->bytes[i] == block->seed;
    if (!is_whole) {
        nr_wrong++;
        dprintf(1, "a block of %zu bytes is torn in the %s\n", size, where);
        _exit(1);
    }
    free(block);
}

static void churn(uint64_t *state, int rounds, const char *where)
{
    struct block *own[32] = {0};
    for (int i = 0; i < rounds; i++) {
        uint64_t r = next_random(state);
        struct block **at = &own[r % 32];
        if (r >> 32 & 1) {
            /* Somebody else frees this one. */
            struct block *fresh = make(state);
            check_and_free(atomic_exchange(&mailbox[(r >> 8) % NR_MAIL], fresh), where);
        } else {
            check_and_free(*at, where);
            *at = make(state);
        }
    }
    for (int i = 0; i < 32; i++)
        check_and_free(own[i], where);
}

static void *short_lived(void *arg)
{
    uint64_t state = (uint64_t)(uintptr_t)arg;
    churn(&state, 20 + (int)(state % 300), "parent");
    nr_threads++;
    return NULL;
}

static void *spawner(void *arg)
{
    uint64_t state = 88172645463325252u + 977 * (uint64_t)(uintptr_t)arg;
    while (!stop) {
        pthread_t threads[4];
        int started = 0;
        for (int i = 0; i < 4; i++)
            started += pthread_create(&threads[started], NULL, short_lived, (void *)(uintptr_t)(next_random(&state) | 1)) == 0;
        churn(&state, 50, "parent");
        for (int i = 0; i < started; i++)
            pthread_join(threads[i], NULL);
    }
    return NULL;
}

static void *in_child(void *arg)
{
    uint64_t state = (uint64_t)(uintptr_t)arg | 1;
    churn(&state, 100, "child's thread");
    return NULL;
}

/* Waits for a child; returns its status, or -1 for one that hangs (and is then ended). */
static int await(pid_t child)
{
    struct timespec pause = {0, 1000000};
    int status;
    for (int ms = 0; ms < CHILD_LIMIT_S * 1000; ms++) {
        pid_t ended = waitpid(child, &status, WNOHANG);
        if (ended == child)
            return status;
        nanosleep(&pause, NULL);
    }
    if (getenv("STORM_KEEP") != NULL) { /* for a debugger */
        dprintf(1, "child %d hangs\n", child);
        for (;;)
            pause.tv_sec = 1000, nanosleep(&pause, NULL);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return -1;
}

static void use_memory(uint64_t state)
{
    for (int i = 0; i < NR_MAIL; i += 3)
        check_and_free(atomic_exchange(&mailbox[i], NULL), "child");
    churn(&state, 400, "child");
    pthread_t thread;
    if (state % 2 == 0 && pthread_create(&thread, NULL, in_child, (void *)(uintptr_t)state) == 0) {
        churn(&state, 100, "child");
        pthread_join(thread, NULL);
    }
}

static void be_child(uint64_t state)
{
    use_memory(state);
    if (state % 4 == 1) {
        pid_t grandchild = fork();
        if (grandchild == 0) {
            alarm(CHILD_LIMIT_S);
            use_memory(state + 1);
            _exit(0);
        }
        int status = grandchild > 0 ? await(grandchild) : 0;
        if (status != 0)
            _exit(status == -1 ? 3 : 1);
    }
    if (state % 3 == 0)
        _exit(0);
    exit(0);
}

static void *forker(void *arg)
{
    long wanted = (long)(intptr_t)arg;
    uint64_t state = 1 + (uint64_t)(uintptr_t)&wanted;
    while (nr_forks < wanted && !stop) {
        churn(&state, 20, "forking thread");
        uint64_t seed = next_random(&state) | 1;
        pid_t child = fork();
        if (child == 0)
            be_child(seed + (seed >> 8 & 1));
        if (child < 0) {
            dprintf(1, "fork: %s\n", strerror(errno));
            nr_wrong++;
            return NULL;
        }
        int status = await(child);
        if (status == -1) {
            dprintf(1, "a child hung at fork %ld\n", (long)nr_forks);
            _exit(3);
        }
        if (status != 0) {
            dprintf(1, "a child ended with status %x at fork %ld\n", status, (long)nr_forks);
            nr_wrong++;
        }
        nr_forks++;
    }
    return NULL;
}

static void *watch(void *arg)
{
    long before = -1;
    (void)arg;
    for (;;) {
        struct timespec pause = {PARENT_LIMIT_S, 0};
        while (nanosleep(&pause, &pause) != 0)
            ;
        long now = nr_forks;
        if (now == before && !stop) {
            dprintf(1, "no fork came to its end in %d s, after %ld\n", PARENT_LIMIT_S, now);
            _exit(3);
        }
        before = now;
    }
}

int main(int argc, char **argv)
{
    long wanted = argc > 1 ? atol(argv[1]) : 200;
    int nr_forkers = argc > 2 ? atoi(argv[2]) : 2;
    pthread_t spawners[NR_SPAWNERS], forkers[8], watcher;
    setvbuf(stdout, NULL, _IONBF, 0);
    pthread_create(&watcher, NULL, watch, NULL);
    for (int i = 0; i < NR_SPAWNERS; i++)
        pthread_create(&spawners[i], NULL, spawner, (void *)(uintptr_t)(i + 1));
    for (int i = 0; i < nr_forkers && i < 8; i++)
        pthread_create(&forkers[i], NULL, forker, (void *)(intptr_t)wanted);
    for (int i = 0; i < nr_forkers && i < 8; i++)
        pthread_join(forkers[i], NULL);
    stop = 1;
    for (int i = 0; i < NR_SPAWNERS; i++)
        pthread_join(spawners[i], NULL);
    printf("%s\n", nr_wrong == 0 && nr_threads > 0 ? "correct" : "wrong");
    return nr_wrong != 0;
}
