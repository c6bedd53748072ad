/* Runs under libdaxtier_preload.so with two tiers: all of malloc's memory moves to and fro, all the time, while threads begin
 * and end, fork, execute and take signals. Every slot may be blank when the library's threads run; were one of them to
 * touch memory of the program, nothing would go on. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCKS = 512, CHURNERS = 2, SECONDS = 2, PATIENCE = 120 };

static const size_t CHUNK = (size_t)1 << 30;
static int stop;
static size_t ended, executed;
static size_t *signals; /* in memory that moves */
static pthread_t churners[CHURNERS];

static int is_over(void)
{
    return __atomic_load_n(&stop, __ATOMIC_RELAXED);
}

static void on_signal(int number)
{
    (void)number;
    __atomic_add_fetch(signals, 1, __ATOMIC_RELAXED);
}

static size_t size_of(unsigned seed)
{
    return 16 + (size_t)seed * 2654435761u % (seed % 16 == 0 ? 200000 : 4000);
}

static void *churn(void *argument)
{
    unsigned char **blocks = (unsigned char **)calloc(BLOCKS, sizeof *blocks);
    unsigned *seeds = (unsigned *)calloc(BLOCKS, sizeof *seeds);
    unsigned round, at;
    size_t size;
    char text[64];

    (void)argument;
    for (round = 1; !is_over(); round++) {
        at = round * 40503u % BLOCKS;
        if (blocks[at] != NULL) {
            size = size_of(seeds[at]);
            CHECK(blocks[at][0] == (unsigned char)seeds[at] && blocks[at][size - 1] == (unsigned char)seeds[at]);
            free(blocks[at]);
        }
        size = size_of(round);
        blocks[at] = (unsigned char *)malloc(size);
        seeds[at] = round;
        if (blocks[at] == NULL)
            continue;
        memset(blocks[at], (int)(unsigned char)round, size);
        snprintf(text, sizeof text, "%u %g", round, (double)round);
    }
    for (at = 0; at < BLOCKS; at++)
        free(blocks[at]);
    free(blocks);
    free(seeds);
    return NULL;
}

static void *begin_and_end(void *argument)
{
    void *block = malloc(1000);

    (void)argument;
    memset(block, 1, 1000);
    free(block);
    return NULL;
}

static void *begin_others(void *argument)
{
    pthread_t thread;
    size_t at;

    (void)argument;
    while (!is_over()) {
        CHECK(pthread_create(&thread, NULL, begin_and_end, NULL) == 0);
        for (at = 0; at < CHURNERS; at++)
            pthread_kill(churners[at], SIGUSR1);
        CHECK(pthread_join(thread, NULL) == 0);
        ended++;
    }
    return NULL;
}

static void *execute(void *argument)
{
    pid_t child;
    int status;

    (void)argument;
    while (!is_over()) {
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(1);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        executed++;
    }
    return NULL;
}

static time_t seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

int main(void)
{
    static struct daxtier_migration_stats stats;
    struct sigaction action;
    pthread_t others[2];
    time_t end;
    size_t at, chunk;
    int code;

    alarm(PATIENCE); /* ends a test that hangs */
    signals = (size_t *)calloc(1, sizeof *signals);
    CHECK(signals != NULL);
    chunk = (size_t)signals / CHUNK * CHUNK;
    code = daxtier_migrate(DAXTIER_DEFAULT_POOL, signals, 1, DAXTIER_TIER_FAST, NULL);
    if (code == DAXTIER_EPERM || code == -38 /* ENOSYS */) {
        printf("skipped: %s\n", daxtier_last_error());
        return 0;
    }
    CHECK_OK(code);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    for (at = 0; at < CHURNERS; at++)
        CHECK(pthread_create(&churners[at], NULL, churn, NULL) == 0);
    CHECK(pthread_create(&others[0], NULL, begin_others, NULL) == 0);
    CHECK(pthread_create(&others[1], NULL, execute, NULL) == 0);
    for (end = seconds() + SECONDS; seconds() < end;) {
        CHECK_OK(daxtier_migrate(DAXTIER_DEFAULT_POOL, (void *)chunk, CHUNK, DAXTIER_TIER_SLOW, NULL));
        CHECK_OK(daxtier_migrate(DAXTIER_DEFAULT_POOL, (void *)chunk, CHUNK, DAXTIER_TIER_FAST, NULL));
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (at = 0; at < CHURNERS; at++)
        pthread_join(churners[at], NULL);
    for (at = 0; at < 2; at++)
        pthread_join(others[at], NULL);
    PREPARE(stats);
    CHECK_OK(daxtier_migration_stats(DAXTIER_DEFAULT_POOL, &stats));
    CHECK(stats.counts.moved > 20 && ended > 0 && executed > 0 && *signals > 0);
    free(signals);
    return 0;
}
