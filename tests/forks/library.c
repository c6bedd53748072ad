/* Forks while other threads hold the locks of the C library. usage: library FORKS
 *
 * One thread flushes all streams, one opens and closes them, one resolves names, one loads and unloads a library, one makes
 * keys and starts threads. Children allocate, print and leave by _exit, since the
 * C library's exit waits for a thread that was loading a library. Whoever makes no progress is reported as hung.
 * Prints "correct", or what went wrong; the exit status is 0, 1 (wrong) or 3 (hung). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHILD_LIMIT_S 30
#define PARENT_LIMIT_S 120

static atomic_int stop;
static atomic_long turns[5];

static void *flush(void *arg)
{
    (void)arg;
    while (!stop) {
        fflush(NULL);
        turns[0]++;
    }
    return NULL;
}

static void *streams(void *arg)
{
    (void)arg;
    while (!stop) {
        FILE *file = fopen("/dev/null", "w");
        if (file == NULL) continue;
        fprintf(file, "%*d", 5000, 1);
        fclose(file);
        turns[1]++;
    }
    return NULL;
}

static void *resolve(void *arg)
{
    struct addrinfo hints, *found;

    (void)arg;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    while (!stop) {
        if (getaddrinfo("localhost", "80", &hints, &found) == 0) freeaddrinfo(found);
        turns[2]++;
    }
    return NULL;
}

static void *load(void *arg)
{
    (void)arg;
    while (!stop) {
        void *library = dlopen("libresolv.so.2", RTLD_NOW | RTLD_LOCAL);
        if (library != NULL) {
            dlsym(library, "ns_name_skip");
            dlclose(library);
        }
        turns[3]++;
    }
    return NULL;
}

static void *nothing(void *arg)
{
    free(malloc(1000));
    return arg;
}

static void *start(void *arg)
{
    pthread_t thread;
    pthread_key_t key;

    (void)arg;
    while (!stop) {
        if (pthread_key_create(&key, free) == 0) pthread_key_delete(key);
        if (pthread_create(&thread, NULL, nothing, NULL) == 0) pthread_join(thread, NULL);
        turns[4]++;
    }
    return NULL;
}

static void child(char **table, int nr_entries)
{
    int at;

    alarm(CHILD_LIMIT_S); /* its default action ends the child, which the parent notices */
    for (at = 0; at < nr_entries; at++) {
        if (table[at][0] != (char)at || table[at][2999] != (char)at) _exit(2);
        free(table[at]);
        table[at] = malloc(4000);
        memset(table[at], 1, 4000);
    }
    printf(".");
    fflush(NULL);
    _exit(0);
}

int main(int argc, char **argv)
{
    static void *(*const work[])(void *) = {flush, streams, resolve, load, start};
    enum { NR_ENTRIES = 2000 };
    static char *table[NR_ENTRIES];
    int forks = argc > 1 ? atoi(argv[1]) : 50, refused = 0, at;
    pthread_t threads[5];

    alarm(PARENT_LIMIT_S);
    /* What children print must not be seen. */
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    if (freopen("/dev/null", "w", stdout) == NULL) return 1;
    for (at = 0; at < NR_ENTRIES; at++) {
        table[at] = malloc(3000);
        memset(table[at], at, 3000);
    }
    for (at = 0; at < 5; at++) pthread_create(&threads[at], NULL, work[at], NULL);
    for (at = 0; at < forks; at++) {
        int status = 0;
        pid_t pid = fork();
        if (pid < 0) {
            refused++;
            continue;
        }
        if (pid == 0) child(table, NR_ENTRIES);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
        if (status != 0) {
            dprintf(2, "child %d ended with status %x\n", at, status);
            return WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? 3 : 1;
        }
    }
    stop = 1;
    for (at = 0; at < 5; at++) {
        pthread_join(threads[at], NULL);
        if (turns[at] == 0) {
            dprintf(2, "thread %d did nothing\n", at);
            return 1;
        }
    }
    if (refused > 0) {
        dprintf(2, "%d of %d forks were refused\n", refused, forks);
        return 1;
    }
    dprintf(2, "correct\n");
    return 0;
}
