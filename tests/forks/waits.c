/* Forks while other threads wait in the kernel. usage: waits restarted|timed
 *
 * restarted: each thread waits without a time limit, or until a point in time; none may see its wait interrupted.
 * timed: the waits have a length; which were interrupted is printed.
 * Prints "correct", or which waits were interrupted. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int ends[2]; /* a pipe that stays empty until the end */
static sem_t semaphore;
static atomic_int nr_waiting;

/* Each returns below 0 when its wait failed. */

static int by_read(void)
{
    char byte;
    return (int)read(ends[0], &byte, 1);
}

static int by_poll(void)
{
    struct pollfd entry = {ends[0], POLLIN, 0};
    return poll(&entry, 1, -1);
}

static int by_ppoll(void)
{
    struct pollfd entry = {ends[0], POLLIN, 0};
    return ppoll(&entry, 1, NULL, NULL);
}

static int by_select(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    return select(ends[0] + 1, &set, NULL, NULL, NULL);
}

static int by_epoll(void)
{
    struct epoll_event event = {EPOLLIN, {0}};
    int epoll = epoll_create1(EPOLL_CLOEXEC), got;
    epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event);
    got = epoll_wait(epoll, &event, 1, -1);
    close(epoll);
    return got;
}

static int by_semaphore(void)
{
    return sem_wait(&semaphore);
}

static int by_point_in_time(void)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += 3;
    errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL);
    return errno == 0 ? 0 : -1;
}

static int by_nanosleep(void)
{
    struct timespec length = {3, 0};
    return nanosleep(&length, NULL);
}

static int by_timed_poll(void)
{
    struct pollfd entry = {-1, POLLIN, 0};
    return poll(&entry, 1, 3000);
}

struct wait {
    const char *name;
    int (*wait)(void);
    int is_timed, failure;
} waits[] = {
    {"read", by_read, 0, 0},           {"poll", by_poll, 0, 0},
    {"ppoll", by_ppoll, 0, 0},         {"select", by_select, 0, 0},
    {"epoll_wait", by_epoll, 0, 0},    {"sem_wait", by_semaphore, 0, 0},
    {"clock_nanosleep", by_point_in_time, 0, 0},
    {"nanosleep", by_nanosleep, 1, 0}, {"poll with a length", by_timed_poll, 1, 0},
};
enum { NR_WAITS = sizeof waits / sizeof waits[0] };

static void *run(void *arg)
{
    struct wait *own = arg;
    nr_waiting++;
    own->failure = own->wait() < 0 ? errno : 0;
    return NULL;
}

int main(int argc, char **argv)
{
    int timed = argc > 1 && strcmp(argv[1], "timed") == 0, nr_started = 0, nr_failed = 0, at;
    pthread_t threads[NR_WAITS];
    char *slow = malloc(8 << 20);

    memset(slow, 1, 8 << 20);
    if (pipe(ends) != 0 || sem_init(&semaphore, 0, 0) != 0) return 1;
    for (at = 0; at < NR_WAITS; at++)
        if (waits[at].is_timed == timed) {
            pthread_create(&threads[at], NULL, run, &waits[at]);
            nr_started++;
        }
    while (nr_waiting < nr_started) usleep(1000);
    usleep(200000);
    for (at = 0; at < 20; at++) {
        int status = 0;
        pid_t pid = fork();
        if (pid < 0) {
            perror("fork");
            return 1;
        }
        if (pid == 0) _exit(slow[5 << 20] == 1 ? 0 : 2);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
        if (status != 0) {
            printf("a child ended with status %x\n", status);
            return 1;
        }
        usleep(20000);
    }
    if (write(ends[1], "xxxxxxxx", 8) != 8) return 1;
    sem_post(&semaphore);
    for (at = 0; at < NR_WAITS; at++) {
        if (waits[at].is_timed != timed) continue;
        pthread_join(threads[at], NULL);
        if (waits[at].failure != 0) {
            printf("%s: %s\n", waits[at].name, strerror(waits[at].failure));
            nr_failed++;
        }
    }
    if (nr_failed == 0) puts("correct");
    return 0;
}
