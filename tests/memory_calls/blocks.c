/* Memory calls on blocks of malloc that lie on a device. usage: blocks on|off
 *
 * on: memory can be moved, so what can't be done on a device is done in DRAM.
 * off: it can't, so such a call fails and changes nothing.
 * Prints "correct", or what went wrong. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

static sigjmp_buf fault;

static void on_fault(int signal)
{
    (void)signal;
    siglongjmp(fault, 1);
}

/* Whether a store to a byte is refused. */
static int faults(volatile char *at)
{
    if (sigsetjmp(fault, 1) != 0)
        return 1;
    *at = *at;
    return 0;
}

/* Whether an address is mapped from a device. */
static int is_on_device(const void *at)
{
    char line[512];
    int is = -1;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        uintptr_t start, end;
        if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start <= (uintptr_t)at && (uintptr_t)at < end)
            is = strstr(line, "daxtier") != NULL || strstr(line, "/dev/dax") != NULL;
    }
    if (maps != NULL)
        fclose(maps);
    return is;
}

static void protects(int moves)
{
    char *b = block(3, 7);
    CHECK(is_on_device(b + SLOT) == 1);
    if (!moves) {
        CHECK(mprotect(b + SLOT, PAGE, PROT_READ) == -1 && errno == ENOMEM);
        CHECK(madvise(b + SLOT, PAGE, MADV_DONTDUMP) == -1 && errno == EAGAIN);
        CHECK(mprotect(b + SLOT, PAGE, PROT_READ | PROT_WRITE) == 0);
        CHECK(is_on_device(b + SLOT) == 1);
        CHECK(mlock(b, PAGE) == 0 && munlock(b, PAGE) == 0);
    } else {
        CHECK(mprotect(b + SLOT, PAGE, PROT_READ) == 0);
        CHECK(is_on_device(b) == 1 && is_on_device(b + SLOT) == 0 && is_on_device(b + 2 * SLOT) == 1);
        CHECK(faults(b + SLOT) && !faults(b + SLOT + PAGE) && !faults(b + SLOT - 1));
        CHECK(holds(b, 3 * SLOT, 7));
        CHECK(mprotect(b + SLOT, PAGE, PROT_READ | PROT_WRITE) == 0);
        CHECK(!faults(b + SLOT));
        CHECK(mprotect(b + SLOT - PAGE, SLOT + 2 * PAGE, PROT_NONE) == 0);
        CHECK(faults(b + SLOT - 1) && faults(b + 2 * SLOT) && !faults(b + 2 * SLOT + PAGE));
        CHECK(mprotect(b, 3 * SLOT, PROT_READ | PROT_WRITE) == 0);
        CHECK(mlock(b, 10) == 0 && is_on_device(b) == 0 && munlock(b, 10) == 0);
    }
    CHECK(holds(b, 3 * SLOT, 7));
    free(b);
}

static void discards(void)
{
    char *b = block(2, 7);
    CHECK(madvise(b + PAGE, PAGE, MADV_DONTNEED) == 0);
    CHECK(holds(b, PAGE, 7) && holds(b + PAGE, PAGE, 0) && holds(b + 2 * PAGE, 2 * SLOT - 2 * PAGE, 7));
    CHECK(posix_madvise(b, PAGE, POSIX_MADV_DONTNEED) == 0 && *b == 7);
    CHECK(madvise(b, 2 * SLOT, MADV_DONTNEED) == 0 && holds(b, 2 * SLOT, 0));
    memset(b, 8, SLOT);
    CHECK(madvise(b, SLOT, MADV_FREE) == 0);
    memset(b, 9, SLOT);
    CHECK(holds(b, SLOT, 9));
    CHECK(madvise(b + 1, PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
    CHECK(madvise(b, PAGE, 12345) == -1 && errno == EINVAL);
    CHECK(madvise(b, SLOT, MADV_SEQUENTIAL) == 0 && madvise(b, SLOT, MADV_NOHUGEPAGE) == 0);
    free(b);
}

static void keeps_mappings(void)
{
    char *b = block(2, 7);
    CHECK(munmap(b, PAGE) == -1 && errno == EINVAL);
    CHECK(munmap(b + SLOT, SLOT) == -1 && errno == EINVAL);
    CHECK(mremap(b, SLOT, 2 * SLOT, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
    char *own = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mremap(own, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, b) == MAP_FAILED && errno == EINVAL);
    CHECK(holds(b, 2 * SLOT, 7));
    free(b);
    /* What is not the library's is the kernel's as ever. */
    memset(own, 5, SLOT);
    CHECK(mprotect(own, PAGE, PROT_READ) == 0 && faults(own) && mprotect(own, PAGE, PROT_READ | PROT_WRITE) == 0);
    CHECK(mlock(own, PAGE) == 0 && munlock(own, PAGE) == 0);
    CHECK(madvise(own, PAGE, MADV_DONTNEED) == 0 && *own == 0);
    CHECK(mprotect(own + 1, PAGE, PROT_READ) == -1 && errno == EINVAL);
    own = mremap(own, SLOT, 2 * SLOT, MREMAP_MAYMOVE);
    CHECK(own != MAP_FAILED && own[PAGE] == 5);
    CHECK(munmap(own, 2 * SLOT) == 0);
}

/* The status of a child that reads a byte. */
static int child_reads(const volatile char *at)
{
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        _exit(*at);
    }
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void forks(int moves)
{
    char *b = block(2, 7);
    CHECK(madvise(b, PAGE, MADV_DONTFORK) == 0 && madvise(b + SLOT, PAGE, MADV_WIPEONFORK) == 0);
    CHECK(is_on_device(b) == 1);
    CHECK(child_reads(b) == -SIGSEGV && child_reads(b + PAGE) == 7);
    CHECK(child_reads(b + SLOT) == 0 && child_reads(b + SLOT + PAGE) == 7);
    CHECK(madvise(b, PAGE, MADV_DOFORK) == 0 && madvise(b + SLOT, PAGE, MADV_KEEPONFORK) == 0);
    CHECK(child_reads(b) == 7 && child_reads(b + SLOT) == 7);
    CHECK(holds(b, 2 * SLOT, 7));
    if (moves)
        CHECK(mprotect(b, PAGE, PROT_READ) == 0);
    pid_t child = fork();
    if (child == 0) {
        /* The child's memory is its own, and private. */
        char *c = block(1, 3);
        nr_wrong = 0;
        CHECK(!moves || faults(b));
        CHECK(mprotect(b, PAGE, PROT_READ | PROT_WRITE) == 0 && !faults(b));
        CHECK(mprotect(b + SLOT, PAGE, PROT_NONE) == 0 && faults(b + SLOT));
        CHECK(madvise(c, PAGE, MADV_DONTNEED) == 0 && *c == 0 && c[PAGE] == 3);
        CHECK(mprotect(c, PAGE, PROT_READ) == (moves ? 0 : -1));
        fflush(stdout);
        _exit(nr_wrong != 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
    CHECK(mprotect(b, PAGE, PROT_READ | PROT_WRITE) == 0);
    free(b);
}

static void locks_all(int moves)
{
    char *b = block(1, 7);
    CHECK(mlockall(MCL_CURRENT) == 0);
    CHECK(mprotect(b, PAGE, PROT_READ) == -1 && errno == ENOMEM);
    CHECK(munlockall() == 0);
    CHECK(mprotect(b, PAGE, PROT_READ) == (moves ? 0 : -1));
    CHECK(mprotect(b, PAGE, PROT_READ | PROT_WRITE) == 0);
    CHECK(mlockall(1 << 20) == -1 && errno == EINVAL);
    free(b);
}

static atomic_int stop;
static char *shared;

/* Guards one page of a slot again and again, as a program does with stacks of its own. */
static void *guard(void *arg)
{
    char *page = shared + (size_t)(uintptr_t)arg * SLOT + 9 * PAGE;
    while (!stop) {
        CHECK(mprotect(page, PAGE, PROT_NONE) == 0);
        CHECK(mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0);
        CHECK(madvise(page, PAGE, MADV_DONTNEED) == 0 && holds(page, PAGE, 0));
    }
    return NULL;
}

static void *count(void *arg)
{
    _Atomic unsigned *word = (void *)(shared + (size_t)(uintptr_t)arg * SLOT);
    unsigned n = 0;
    for (; !stop; n++)
        if (atomic_fetch_add(word, 1) != n)
            nr_wrong++;
    return NULL;
}

static void stresses(void)
{
    enum { NR = 3 };
    pthread_t threads[2 * NR];
    shared = block(NR, 0);
    for (uintptr_t i = 0; i < NR; i++) {
        pthread_create(&threads[2 * i], NULL, guard, (void *)i);
        pthread_create(&threads[2 * i + 1], NULL, count, (void *)i);
    }
    usleep(500000);
    stop = 1;
    for (int i = 0; i < 2 * NR; i++)
        pthread_join(threads[i], NULL);
    free(shared);
}

/* What a pipe was given of a block is not the next owner's, whoever that is. */
static void splices(void)
{
    enum { PAGES = 8 };
    int ends[2];
    static char seen[PAGES * PAGE];
    char *b = block(2, 7);
    CHECK(is_on_device(b) == 1);
    CHECK(pipe(ends) == 0);
    struct iovec parts[2] = {{b + PAGE, 3 * PAGE}, {b + SLOT, (PAGES - 3) * PAGE}};
    CHECK(vmsplice(ends[1], parts, 2, 0) == (ssize_t)sizeof seen);
    CHECK(is_on_device(b) == 0 && is_on_device(b + SLOT) == 0);
    free(b);
    /* Longer than memory that was moved away from rests. */
    sleep(4);
    char *others[8];
    for (int i = 0; i < 8; i++)
        others[i] = block(2, 8);
    CHECK(read(ends[0], seen, sizeof seen) == (ssize_t)sizeof seen);
    CHECK(holds(seen, sizeof seen, 7));
    for (int i = 0; i < 8; i++)
        free(others[i]);
    char here[PAGE];
    struct iovec outside = {memset(here, 3, sizeof here), sizeof here};
    CHECK(vmsplice(ends[1], &outside, 1, 0) == sizeof here);
    CHECK(vmsplice(-1, &outside, 1, 0) == -1 && errno == EBADF);
    CHECK(vmsplice(ends[1], NULL, 1, 0) == -1 && errno == EFAULT);
    close(ends[0]);
    close(ends[1]);
}

static void writes_to_itself(void)
{
    static char from[2 * PAGE];
    char *b = block(2, 7);
    CHECK(is_on_device(b) == 1 && is_on_device(b + SLOT) == 1);
    struct iovec local = {memset(from, 5, sizeof from), sizeof from};
    struct iovec remote[2] = {{b + PAGE, PAGE}, {b + SLOT, PAGE}};
    CHECK(process_vm_writev(getpid(), &local, 1, remote, 2, 0) == (ssize_t)sizeof from);
    CHECK(is_on_device(b) == 0 && is_on_device(b + SLOT) == 0);
    CHECK(holds(b + PAGE, PAGE, 5) && holds(b + SLOT, PAGE, 5) && holds(b + 2 * PAGE, PAGE, 7));
    CHECK(process_vm_writev(getpid(), &local, 1, NULL, 1, 0) == -1 && errno == EFAULT);
    free(b);
}

int main(int argc, char **argv)
{
    int moves = argc > 1 && strcmp(argv[1], "on") == 0;
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    protects(moves);
    discards();
    keeps_mappings();
    forks(moves);
    locks_all(moves);
    if (moves) {
        splices();
        writes_to_itself();
        stresses();
    }
    puts(nr_wrong == 0 ? "correct" : "wrong");
    return nr_wrong != 0;
}
