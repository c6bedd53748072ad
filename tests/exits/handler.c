/* Leaves by _exit in a signal handler, which most often interrupts malloc or free. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static void leave(int signal)
{
    (void)signal;
    _exit(7);
}

int main(int argc, char **argv)
{
    struct itimerval soon = {{0, 0}, {0, argc > 1 ? atoi(argv[1]) : 1000}};
    void *blocks[1024] = {0};
    unsigned at;

    signal(SIGALRM, leave);
    setitimer(ITIMER_REAL, &soon, NULL);
    for (at = 0;; at = (at * 5 + 1) % 1024) {
        size_t size = (at * 2654435761u) % 200000 + 1;
        free(blocks[at]);
        blocks[at] = malloc(size);
        memset(blocks[at], 1, size);
    }
}
