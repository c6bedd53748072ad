/* Forks where threads block signals. usage: blocked all|hard
 *
 * all: other threads block every signal that the C library lets them, one of them in sigwaitinfo, and write without pause;
 * children must see pairs of words that were written together as equal, and sigwaitinfo must meet no signal.
 * hard: a thread blocks signals behind the C library's back. It can't be stopped, so fork must fail with EAGAIN.
 * Prints "correct", or what went wrong. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NR_WORDS (1 << 20)

static _Atomic unsigned long *words;
static atomic_int stop, is_ready, nr_met;

static void *write_pairs(void *arg)
{
    sigset_t all;
    unsigned long hard = ~0ul;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    if (arg != NULL)
        syscall(SYS_rt_sigprocmask, SIG_BLOCK, &hard, NULL, sizeof hard);
    is_ready++;
    /* One pass after another; in each, the first word is written before all others. */
    for (unsigned long n = 1; !stop; n++)
        for (int i = 0; i < NR_WORDS && !stop; i += 512)
            words[i] = n;
    return NULL;
}

static void *wait_for_any(void *arg)
{
    sigset_t all;
    (void)arg;
    sigfillset(&all);
    sigdelset(&all, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    is_ready++;
    for (;;)
        if (sigwaitinfo(&all, NULL) > 0)
            nr_met++;
    return NULL;
}

/* Passes follow each other through the array: no word is newer than the one before it, and none is older by two. */
static int is_whole(void)
{
    for (int i = 512; i < NR_WORDS; i += 512)
        if (words[i] > words[i - 512] || words[i] + 1 < words[0])
            return 0;
    return 1;
}

int main(int argc, char **argv)
{
    int is_hard = argc > 1 && strcmp(argv[1], "hard") == 0, nr_wrong = 0, nr_refused = 0;
    pthread_t writer, waiter;
    words = calloc(NR_WORDS, sizeof *words);
    pthread_create(&writer, NULL, write_pairs, is_hard ? words : NULL);
    if (!is_hard)
        pthread_create(&waiter, NULL, wait_for_any, NULL);
    while (is_ready < (is_hard ? 1 : 2))
        usleep(1000);
    for (int i = 0; i < (is_hard ? 1 : 20); i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(is_whole() ? 0 : 1);
        if (child < 0) {
            nr_refused += errno == EAGAIN;
            continue;
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (status != 0) {
            printf("child %d: status %x\n", i, status);
            nr_wrong++;
        }
    }
    stop = 1;
    pthread_join(writer, NULL);
    if (nr_met != 0) {
        printf("sigwaitinfo met %d signals\n", nr_met);
        nr_wrong++;
    }
    if (nr_refused != is_hard) {
        printf("%d forks refused\n", nr_refused);
        nr_wrong++;
    }
    puts(nr_wrong == 0 ? "correct" : "wrong");
    fflush(stdout);
    _exit(nr_wrong != 0);
}
