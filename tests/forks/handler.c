/* Forks in a signal handler that interrupts an allocating program at any point. A fork inside the allocator fails with
 * EAGAIN, all others are made, and none hangs. Prints "correct", or what went wrong. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NR_FORKS 150
#define LIMIT_S 60

static volatile int nr_made, nr_refused, nr_wrong;

/* The next signal comes when the program has run for a while again. */
static void arm(void)
{
    struct itimerval once = {{0, 0}, {0, 1500}};
    setitimer(ITIMER_REAL, &once, NULL);
}

static void on_alarm(int number)
{
    int errno_before = errno, status = 0;
    pid_t child = fork();
    (void)number;
    if (child == 0)
        _exit(0);
    if (child > 0) {
        nr_made++;
        if (waitpid(child, &status, 0) != child || status != 0)
            nr_wrong++;
    } else if (errno == EAGAIN) {
        nr_refused++;
    } else {
        nr_wrong++;
    }
    arm();
    errno = errno_before;
}

int main(void)
{
    struct itimerval never = {{0, 0}, {0, 0}};
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    void *blocks[64] = {0};
    time_t end = time(NULL) + LIMIT_S;
    sigaction(SIGALRM, &action, NULL);
    arm();
    for (unsigned i = 0; nr_made + nr_refused < NR_FORKS || nr_made == 0 || nr_refused == 0; i++) {
        if (time(NULL) > end) {
            nr_wrong++;
            break;
        }
        for (unsigned k = 0; k < 100; k++) {
            void **at = &blocks[(i + k) % 64];
            free(*at);
            *at = malloc(2000 + (i * 977 + k * 131) % 300000);
        }
    }
    setitimer(ITIMER_REAL, &never, NULL);
    if (nr_wrong != 0)
        printf("%d made, %d refused, %d wrong\n", nr_made, nr_refused, nr_wrong);
    puts(nr_wrong == 0 ? "correct" : "wrong");
    return nr_wrong != 0;
}
