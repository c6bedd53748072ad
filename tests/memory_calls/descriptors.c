/* A program that closes and re-uses descriptors which it did not open. usage: descriptors polite|bare
 *
 * polite: by the C library's functions, in every way, while memory moves (mprotect of slow blocks moves them). Nothing of the
 * library's may be lost, and every number that the program wants it gets.
 * bare: by system calls. Migration ends with one line, and no data is lost.
 * Prints "correct", or what went wrong. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define MOST 2048

static atomic_int stop;

static int is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* The library's numbers: those that are open without the program having opened them. Not the standard ones. */
static int find_ours(int *ours)
{
    int nr = 0;
    for (int fd = 3; fd < MOST; fd++)
        if (is_open(fd))
            ours[nr++] = fd;
    return nr;
}

/* Memory goes on coming from the device, moves to DRAM, and keeps its bytes. */
static void works(void)
{
    char *b = block(4, 7);
    CHECK(mprotect(b + SLOT, PAGE, PROT_READ) == 0);
    CHECK(mprotect(b + SLOT, PAGE, PROT_READ | PROT_WRITE) == 0);
    CHECK(holds(b, 4 * SLOT, 7));
    free(b);
}

/* Makes slots and moves them without pause, and looks whether a store was lost. */
static void *move(void *arg)
{
    (void)arg;
    while (!stop) {
        char *b = block(1, 5);
        if (mprotect(b + PAGE, PAGE, PROT_READ) == 0)
            mprotect(b + PAGE, PAGE, PROT_READ | PROT_WRITE);
        else
            CHECK(!"a slot can not be moved");
        CHECK(holds(b, SLOT, 5));
        free(b);
    }
    return NULL;
}

static void close_everything(int round)
{
    int (*range)(unsigned, unsigned, int) = (int (*)(unsigned, unsigned, int))dlsym(RTLD_DEFAULT, "close_range");
    void (*from)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "closefrom");
    CHECK(range != NULL && from != NULL);
    switch (round % 3) {
    case 0:
        for (int fd = 3; fd < MOST; fd++)
            close(fd);
        break;
    case 1:
        CHECK(range(3, ~0u, 0) == 0);
        break;
    default:
        from(3);
    }
}

static void is_polite(int *ours, int nr_ours)
{
    pthread_t mover;
    CHECK(nr_ours >= 2);
    for (int i = 0; i < nr_ours; i++) {
        CHECK(fcntl(ours[i], F_GETFD) == FD_CLOEXEC);
        CHECK(close(ours[i]) == -1 && errno == EBADF && is_open(ours[i]));
        CHECK(dup2(ours[i], 9) == -1 && errno == EBADF);
        CHECK(dup2(ours[i], ours[i]) == -1 && errno == EBADF);
    }
    pthread_create(&mover, NULL, move, NULL);
    for (int round = 0; round < 60; round++) {
        int own[2], file = open("/dev/null", O_RDWR);
        CHECK(pipe(own) == 0 && dup2(file, 600 + round) == 600 + round);
        close_everything(round);
        CHECK(!is_open(own[0]) && !is_open(own[1]) && !is_open(file) && !is_open(600 + round));
        CHECK(find_ours(ours) == nr_ours);
        usleep(2000);
    }
    works();
    /* Every number can be the program's, one of ours too. */
    for (int i = 0; i < nr_ours; i++) {
        char name[64], target[64] = "";
        int file = open("/dev/zero", O_RDONLY), fd = ours[i];
        CHECK(i % 2 == 0 ? dup2(file, fd) == fd : dup3(file, fd, O_CLOEXEC) == fd);
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        CHECK(readlink(name, target, sizeof target - 1) > 0 && strcmp(target, "/dev/zero") == 0);
        usleep(5000);
        CHECK(close(fd) == 0 && !is_open(fd) && close(file) == 0);
    }
    CHECK(find_ours(ours) == nr_ours);
    works();
    /* The same numbers in a child are the child's. */
    pid_t child = vfork();
    if (child == 0) {
        for (int fd = 3; fd < MOST; fd++)
            close(fd);
        for (int fd = 3; fd < MOST; fd++)
            if (is_open(fd))
                _exit(1);
        _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
    child = fork();
    if (child == 0) {
        nr_wrong = 0;
        close_everything(0);
        close_everything(1);
        stop = 1;
        works();
        fflush(stdout);
        _exit(nr_wrong != 0);
    }
    waitpid(child, &status, 0);
    CHECK(status == 0);
    stop = 1;
    pthread_join(mover, NULL);
    works();
}

static void *count(void *arg)
{
    _Atomic unsigned *word = arg;
    unsigned n = 0;
    for (; !stop; n++)
        if (atomic_fetch_add(word, 1) != n)
            nr_wrong++;
    return NULL;
}

static void is_bare(void)
{
    enum { NR = 40 };
    char *b = block(NR, 7);
    pthread_t counter;
    memset(b, 0, sizeof(unsigned));
    pthread_create(&counter, NULL, count, b);
    /* Moves are under way when everything is closed. */
    for (int i = 0; i < NR; i++) {
        if (i == NR / 2) {
            syscall(SYS_close_range, 3u, ~0u, 0);
            for (int fd = 3; fd < MOST; fd++)
                CHECK(open("/dev/zero", O_RDWR) == fd);
        }
        int outcome = mprotect(b + (size_t)i * SLOT + PAGE, PAGE, PROT_READ);
        CHECK(i < NR / 2 ? outcome == 0 : outcome == -1 && errno == ENOMEM);
        CHECK(holds(b + (size_t)i * SLOT + PAGE, SLOT - PAGE, 7));
    }
    stop = 1;
    pthread_join(counter, NULL);
    /* Nothing was done to the files that have the numbers now. */
    for (int fd = 3; fd < MOST; fd++)
        CHECK(is_open(fd) && lseek(fd, 0, SEEK_CUR) == 0);
    /* For what the library writes at the end. */
    close(MOST - 1);
}

int main(int argc, char **argv)
{
    static int ours[MOST];
    struct rlimit limit = { MOST, MOST };
    int nr_ours;
    setrlimit(RLIMIT_NOFILE, &limit);
    setvbuf(stdout, malloc(BUFSIZ), _IOFBF, BUFSIZ);
    /* What was inherited. */
    for (int fd = 3; fd < MOST; fd++)
        close(fd);
    works();
    nr_ours = find_ours(ours);
    if (argc > 1 && strcmp(argv[1], "bare") == 0)
        is_bare();
    else
        is_polite(ours, nr_ours);
    puts(nr_wrong == 0 ? "correct" : "wrong");
    return nr_wrong != 0;
}
