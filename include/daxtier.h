/*
 * daxtier.h - memory of two tiers, DRAM and CXL, for C and C++.
 *
 * A pool (daxtier_open) is made of a fast and a slow tier. Allocate blocks of any size from it
 * (daxtier_malloc), or folios: naturally aligned runs of 2^order pages with a reference count
 * (daxtier_folio_alloc). A pgmap (daxtier_pgmap_open) is a device of its own, whose folios can be
 * requested by their offset too (daxtier_folio_request). An offset counts pages of 4096 bytes from
 * the start of a pgmap; it is never a pointer.
 *
 * Conventions
 *
 * - Functions return 0 or a negative DAXTIER_E code; the numbers are fixed for good. Codes above
 *   -1000 are negative errno values, also where they have no DAXTIER_ name: then the kernel refused
 *   a system call. daxtier_strerror() gives a text for a code, daxtier_last_error() the details of
 *   the last failure of the thread. errno itself is not a part of the interface, and may change.
 * - Arguments come in the order object, inputs, outputs. Outputs are written only on success, but
 *   for the lists of folios in use that daxtier_close() and daxtier_pgmap_drain() give with
 *   DAXTIER_EBUSY and DAXTIER_ETIMEDOUT. A NULL pointer where a function needs one is
 *   DAXTIER_ENULL; any other pointer must lead to what the function's comment says.
 * - Pools, pgmaps and folios are plain numbers. They can be copied and stored. A number whose object
 *   was closed or freed is never given again soon and is refused (DAXTIER_EHANDLE, DAXTIER_ESTALE).
 * - Every structure begins with its size, which the caller sets to sizeof. So a program works with
 *   older and newer libraries. Options that an older library does not know must be zero
 *   (DAXTIER_E2BIG otherwise); results that it does not know are zero. Set whole structures to zero
 *   first. Reserved fields are 0.
 * - Choices and flags are plain integers and are checked. Unknown ones are refused, so that they can
 *   get a meaning later.
 * - Each function's comment says: which threads may call it at the same time, whether it blocks, what
 *   it does in the child after fork(2), whether a signal handler may call it, and how long pointers
 *   and numbers stay valid. "Blocks: no" does not exclude page faults.
 * - No C++ exception and no Rust panic leaves a function (DAXTIER_EPANIC). A callback must not throw.
 * - Threads of the library run from the first use of what needs them: those that move memory, two if
 *   the configuration asks for no more, and one for daxtier_pgmap_keep_zeroed(). They block every
 *   signal and call none of the program's functions.
 * - The library has fork handlers (pthread_atfork) from the first pool or pgmap on, and a handler of
 *   SIGBUS where memory of a device is used: what it does not mend goes on to the program's own
 *   handler. It has no exit handlers.
 *
 * Kept for later versions
 *
 * Flags in bits 32 to 47, advice numbers 16 to 31 and codes -1100 to -1199 are for moving memory. None
 * of them is in use, and none will get another meaning. An explicitly requested folio never moves; one
 * that was allocated with DAXTIER_MOVABLE may, in a later version.
 *
 * One runtime per process
 *
 * When the program runs under libdaxtier_preload.so, pool 0 (DAXTIER_DEFAULT_POOL) is the pool that
 * malloc(3) uses, and daxtier_free(), daxtier_usable_size() and daxtier_where() with pool 0 know the
 * memory of both. The library exports one symbol more than this header declares, daxtier_runtime_v1:
 * it is how the libraries find each other, and not for programs.
 *
 * This file is generated from the library's sources; do not edit it.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef DAXTIER_H
#define DAXTIER_H

#include <stddef.h>
#include <stdint.h>

/* Version that this header belongs to, first part. Another first part means another interface. */
#define DAXTIER_VERSION_MAJOR 0

/* Version that this header belongs to, second part. */
#define DAXTIER_VERSION_MINOR 1

/* Version that this header belongs to, third part. */
#define DAXTIER_VERSION_PATCH 0

/*
 * Version that this header belongs to as one number, 0x00MMmmpp, which can be compared:
 * #if DAXTIER_VERSION_NUMBER >= 0x000100.
 */
#define DAXTIER_VERSION_NUMBER (((DAXTIER_VERSION_MAJOR << 16) | (DAXTIER_VERSION_MINOR << 8)) | DAXTIER_VERSION_PATCH)

/* Success. */
#define DAXTIER_OK 0

/* The object belongs to a pool, which alone may do this with it. */
#define DAXTIER_EPERM (-1)

/* There is no live folio, tier or device there. */
#define DAXTIER_ENOENT (-2)

/* An options structure sets something that this version does not know. */
#define DAXTIER_E2BIG (-7)

/* The memory that the request may use is exhausted. */
#define DAXTIER_ENOMEM (-12)

/* In use: pages of the run, a folio or block of the pool, or a device that another process holds. */
#define DAXTIER_EBUSY (-16)

/* There is no such device, tier, or default pool. */
#define DAXTIER_ENODEV (-19)

/* An argument makes no sense, other than the ones that have a code of their own. */
#define DAXTIER_EINVAL (-22)

/* Not supported by this device or in this state. */
#define DAXTIER_ENOTSUP (-95)

/* The time is up and folios are still in use. */
#define DAXTIER_ETIMEDOUT (-110)

/* The folio or block is gone: its last reference was put (this may be the second put of it), or it was freed before. */
#define DAXTIER_ESTALE (-116)

/* A defect in the library: a panic was caught. What the call was about is in an unknown but safe state. */
#define DAXTIER_EPANIC (-1001)

/* A pointer that must not be NULL is NULL. */
#define DAXTIER_ENULL (-1002)

/* The number is not an open pool, an open pgmap or a folio, or it was closed. */
#define DAXTIER_EHANDLE (-1003)

/* The size in the first field of a structure is none that this library knows. */
#define DAXTIER_ESIZE (-1004)

/* A flag that does not exist, that does not fit the function, or two that exclude each other. */
#define DAXTIER_EFLAGS (-1005)

/* A number that stands for a choice (advice, hint, tier) is none of the choices. */
#define DAXTIER_ECHOICE (-1006)

/* The configuration string or the device name is wrong; daxtier_last_error() says where. */
#define DAXTIER_ECONFIG (-1007)

/* The order is above DAXTIER_MAX_ORDER, or outside what the pgmap or the flags allow. */
#define DAXTIER_EORDER (-1008)

/* The offset, or the end of the folio there, lies beyond the end of the pgmap. */
#define DAXTIER_EOFFSET (-1009)

/* The offset is not a multiple of the folio's number of pages, or the alignment is no power of two or too large. */
#define DAXTIER_EALIGN (-1010)

/* The address is not in memory of this library, or no block or folio begins there. */
#define DAXTIER_EFOREIGN (-1011)

/* The pgmap was killed: it hands out nothing any more. */
#define DAXTIER_EDYING (-1012)

/* The object belongs to the parent process, from which this one was forked. */
#define DAXTIER_EFORKED (-1013)

/* The bookkeeping of the folio was found overwritten; the folio is out of use for good. */
#define DAXTIER_ECORRUPT (-1014)

/* More pools or pgmaps are open than the library can number. */
#define DAXTIER_ELIMIT (-1015)

/* Bytes in a page, the unit of offsets. */
#define DAXTIER_PAGE_SIZE 4096

/* The largest order: 2^18 pages, 1 GiB. Order 0 is a page, order 9 is 2 MiB. */
#define DAXTIER_MAX_ORDER 18

/* Number of orders; length of arrays that count folios by order. */
#define DAXTIER_NR_ORDERS 19

/* Flag: every byte is zero. */
#define DAXTIER_ZERO 1

/*
 * Flag of daxtier_folio_alloc() for orders 9 and above: the library may move the folio to another tier while it is
 * in use. Its address stays the same; direct I/O, io_uring and RDMA must not use it. Without this flag a folio
 * never moves. This version moves none yet.
 */
#define DAXTIER_MOVABLE (1 << 1)

/* Flag: use the fast tier and no other; fail rather than spill. Without a tier flag the pool's policy decides. */
#define DAXTIER_TIER_FAST (1 << 8)

/* Flag: use the slow tier and no other; fail rather than spill. */
#define DAXTIER_TIER_SLOW (2 << 8)

/* Flag, a hint: soon given back. Short- and long-lived memory is kept apart. */
#define DAXTIER_HINT_SHORT (1 << 12)

/* Flag, a hint: kept for most of the program's life. */
#define DAXTIER_HINT_LONG (2 << 12)

/* Stands for the default pool: the one of libdaxtier_preload.so when the program runs under it. */
#define DAXTIER_DEFAULT_POOL 0

/* Offsets: the library chooses them on request, and any idle offset may be requested by number too. */
#define DAXTIER_OFFSETS_PROVIDED 0

/* Offsets: the caller keeps track of them. Only daxtier_folio_request() hands out folios. */
#define DAXTIER_OFFSETS_OWN 1

/* State of a pgmap: it hands out folios. */
#define DAXTIER_PGMAP_LIVE 1

/* State of a pgmap: killed, with folios still in use. */
#define DAXTIER_PGMAP_DYING 2

/* State of a pgmap: killed, and no folio is in use. */
#define DAXTIER_PGMAP_DRAINED 3

/* State of a pgmap: its device has been given back. */
#define DAXTIER_PGMAP_DEAD 4

/* State of a pgmap: it is the parent's, from which this process was forked. */
#define DAXTIER_PGMAP_FORKED 5

/* Advice: the range will be used soon; back every page of it now. */
#define DAXTIER_ADVICE_POPULATE 1

/* Advice: the contents of the range are of no more use. Whole pages inside read as zero afterwards. */
#define DAXTIER_ADVICE_DISCARD 2

/* A piece of a device that is still in use: held by blocks that malloc handed out. */
#define DAXTIER_HELD_BLOCKS 1

/* A piece of a device that is still in use: held by a folio, which never moves. */
#define DAXTIER_HELD_FOLIO 2

/* A piece of a device that was just left, and is free in a moment. */
#define DAXTIER_HELD_SETTLING 3

/* Answer of a daxtier_loss_handler: the access is a SIGBUS, as without a handler. */
#define DAXTIER_LOSS_SIGBUS 0

/* Answer of a daxtier_loss_handler: zeroed memory takes the place of what is lost, and the access is made again. */
#define DAXTIER_LOSS_ZERO_FILL 1

/* Answer of a daxtier_loss_handler: the access is made again, since the handler has put something there. */
#define DAXTIER_LOSS_RETRY 2

/*
 * A pool: tiers, a placement policy and a heap. The number of a closed pool is never given again. 0 stands for the
 * default pool, where a function says that it takes it.
 */
typedef uint64_t daxtier_pool;

/*
 * A folio: 2^order pages in a row, naturally aligned, with a reference count. The number names this folio and no
 * later one in the same place. Never 0.
 */
typedef uint64_t daxtier_folio;

/* A pgmap: a range of a device that hands out folios. The number of a closed pgmap is never given again. */
typedef uint64_t daxtier_pgmap;

/* What a folio is. */
struct daxtier_folio_info {
    /* Set by the caller: sizeof(struct daxtier_folio_info). */
    size_t size;
    /* The folio; 0 in a list if it was gone when the list was written. */
    daxtier_folio folio;
    /* The pgmap that it is of. */
    daxtier_pgmap pgmap;
    /* Its first page in the pgmap. */
    uint64_t offset;
    /* Its user word, see daxtier_folio_set_user(). */
    uint64_t user;
    /* Its first byte, or NULL in a list if it was never used through an address. */
    void *address;
    /* Its order: it is 4096 << order bytes long. */
    uint32_t order;
    /* References to it at this moment. */
    uint32_t ref_count;
    /* Number of the tier that its pgmap is in, 0 the fastest; -1 when the pgmap is in no pool. */
    int32_t tier;
    /* 0. */
    uint32_t reserved;
};

/* Figures of a pool. */
struct daxtier_stats {
    /* Set by the caller: sizeof(struct daxtier_stats). */
    size_t size;
    /* Allocations that no tier could serve. */
    uint64_t failures;
    /* Number of tiers; they are numbered from 0, the fastest. */
    uint32_t nr_tiers;
    /* The process that the figures are of. */
    uint32_t pid;
    /* The placement policy, as the configuration spells it. */
    char policy[64];
    /* Why the last allocation failed; empty if none did. */
    char last_failure[256];
};

/* Figures of a tier. */
struct daxtier_tier_stats {
    /* Set by the caller: sizeof(struct daxtier_tier_stats). */
    size_t size;
    /* "fast" or "slow". */
    char name[16];
    /* What it is made of: "dram", "emulated", "dax" or "node". */
    char kind[16];
    /* Bytes that the tier may hold, bookkeeping included. */
    uint64_t capacity_bytes;
    /* Bytes in use. */
    uint64_t used_bytes;
    /* Most bytes that were in use at once. */
    uint64_t peak_bytes;
    /* Bytes of bookkeeping. */
    uint64_t metadata_bytes;
    /* Allocations served. */
    uint64_t allocations;
    /* Requests that this tier could not serve, whether or not another could. */
    uint64_t failures;
    /* Live folios of each order, from order 0. */
    uint64_t folios_by_order[19];
};

/* Where a byte lies. */
struct daxtier_placement {
    /* Set by the caller: sizeof(struct daxtier_placement). */
    size_t size;
    /* The pgmap. */
    daxtier_pgmap pgmap;
    /* Page of the pgmap that the byte is in. */
    uint64_t offset;
    /* Number of the tier, 0 the fastest. */
    uint32_t tier;
    /* Order of the folio that the page is in. */
    uint32_t order;
    /* "fast" or "slow". */
    char tier_name[16];
    /* Name of the device, such as "/dev/dax0.0"; cut where it is longer. */
    char device[128];
};

/* A dax device of the machine. */
struct daxtier_device_info {
    /* Set by the caller: sizeof(struct daxtier_device_info). */
    size_t size;
    /* Its length in bytes; 0 if it has no memory. */
    uint64_t len_bytes;
    /* Its mapping granule in bytes. */
    uint64_t align_bytes;
    /* The NUMA node that its memory is, or -1 where that is not known. */
    int32_t node;
    /* 1 if this process can open it now, else 0. */
    uint32_t is_usable;
    /* What daxtier_pgmap_open() and a configuration call it, such as "/dev/dax0.0". */
    char path[128];
    /* Its state: "free", "claimed", "system-ram", "not-permitted" and others. */
    char state[32];
    /* What was seen, for a person to read, and the command that makes the device usable where there is one. */
    char reason[256];
};

/* What a free callback learns. Later versions may add fields at the end. */
struct daxtier_freed_folio {
    /* Length of this structure in the library that is running. */
    size_t size;
    /* The pgmap. */
    daxtier_pgmap pgmap;
    /* First page of the folio in the pgmap. */
    uint64_t offset;
    /* The user word that the folio had. */
    uint64_t user;
    /* Order that the folio had. */
    uint32_t order;
    /* 0. */
    uint32_t reserved;
};

/*
 * Called when the last reference to a folio of the pgmap was put, exactly once.
 *
 * Runs on the thread that put the last reference, inside that call, with no lock of the library held; the folio is
 * idle already. It may call any function of this interface, so it may request the same offset again. It must not
 * throw or longjmp out. freed is valid during the call. context is what daxtier_pgmap_open() was given; it must
 * stay valid until daxtier_pgmap_close() succeeds. Does not run in a forked child for the parent's folios.
 */
typedef void (*daxtier_folio_free)(void *context, const struct daxtier_freed_folio *freed);

/* How a pgmap is opened. All zero but for the size means the defaults. */
struct daxtier_pgmap_options {
    /* Set by the caller: sizeof(struct daxtier_pgmap_options). */
    size_t size;
    /* A name for messages, or NULL for the device's. */
    const char *name;
    /* Called for each folio that becomes free, or NULL. */
    daxtier_folio_free on_free;
    /* The first argument of on_free. */
    void *context;
    /* The most pages that may be in use at once; 0 for no limit but the device's length. */
    uint64_t limit_pages;
    /* Smallest order that is handed out. */
    uint32_t min_order;
    /* DAXTIER_OFFSETS_PROVIDED or DAXTIER_OFFSETS_OWN. */
    uint32_t offsets;
    /*
     * 1 when freed folios keep their memory, for the next folio in their place; 0 when it goes back to the system. Memory
     * of device-dax, and of folios below order 9, is always kept.
     */
    uint32_t retain_memory;
    /* 0. */
    uint32_t reserved;
};

/* Figures of a pgmap. */
struct daxtier_pgmap_stats {
    /* Set by the caller: sizeof(struct daxtier_pgmap_stats). */
    size_t size;
    /* Number of pages. */
    uint64_t nr_pages;
    /* Bytes that may be in use at once. */
    uint64_t capacity_bytes;
    /* Bytes of the device that this process holds. */
    uint64_t claimed_bytes;
    /* Bytes in folios. */
    uint64_t used_bytes;
    /* Most bytes that were in folios at once. */
    uint64_t peak_bytes;
    /* Bytes of bookkeeping. */
    uint64_t metadata_bytes;
    /* Bytes out of use because their bookkeeping was found overwritten. */
    uint64_t quarantined_bytes;
    /* Requests served. */
    uint64_t allocations;
    /* Requests refused for want of memory. */
    uint64_t failures;
    /* Live folios of each order, from order 0. */
    uint64_t folios_by_order[19];
    /* A DAXTIER_PGMAP_ state, or 0 for one that this header does not know. */
    uint32_t state;
    /* Smallest order that is handed out. */
    uint32_t min_order;
    /* Name of the pgmap; cut where it is longer. */
    char name[64];
    /* Name of the device, such as "/dev/dax0.0"; cut where it is longer. */
    char device[128];
    /* Bytes that are free and zero already, see daxtier_pgmap_keep_zeroed(). */
    uint64_t prezeroed_bytes;
};

/* What came of the slots of 2 MiB that were to be moved: how many had which outcome. */
struct daxtier_migration {
    /* Set by the caller: sizeof(struct daxtier_migration). */
    size_t size;
    /* Moved. */
    uint64_t moved;
    /* In the tier already. */
    uint64_t already_there;
    /* Nothing of the pool was there. */
    uint64_t gone;
    /* Pinned with daxtier_pin(). */
    uint64_t kept;
    /* Of a kind that is not moved: neither tier is DRAM, or a copy of a parent process's memory. */
    uint64_t not_movable;
    /* A page is pinned for direct I/O. */
    uint64_t pinned;
    /* The program may do direct I/O, and pinned pages of a device can't be told from others. */
    uint64_t direct_io;
    /* A page is shared with a forked process. */
    uint64_t forked;
    /* The program locked or protected a page. */
    uint64_t locked;
    /* The process is near the limit of mappings (vm.max_map_count). */
    uint64_t map_limit;
    /* The tier is full. */
    uint64_t no_space;
    /* The machine has no memory for the copy. */
    uint64_t no_memory;
    /* The device's memory can't be had. */
    uint64_t device;
    /* The kernel refused a call that it should not refuse. */
    uint64_t refused;
    /* Cancelled before. */
    uint64_t cancelled;
};

/* A request to move memory that is under way. */
typedef uint64_t daxtier_move;

/* What came of all requests to move a pool's memory in this process. */
struct daxtier_migration_stats {
    /* Set by the caller: sizeof(struct daxtier_migration_stats). */
    size_t size;
    /* How many slots of 2 MiB had which outcome. Its size is set by the call. */
    struct daxtier_migration counts;
    /*
     * Huge pages of DRAM that were made for the next promotions, beyond the capacity of the fast tier: given back half a
     * second after the last move.
     */
    uint64_t staged_bytes;
    /*
     * Moved slots that were blocked for at most 1, 2, 4, ... microseconds, each counted once: what a thread that
     * stores to one waits at most.
     */
    uint64_t blocked_us[32];
    /* The same of the whole move, preparation included. */
    uint64_t total_us[32];
};

/* A piece of a device that is still in use. */
struct daxtier_held {
    /* Set by the caller: sizeof(struct daxtier_held). */
    size_t size;
    /* Where it is in the device's pgmap, in pages. */
    uint64_t offset;
    /* Its length in bytes. */
    uint64_t len_bytes;
    /* Where the program sees it; NULL if it never asked. */
    void *address;
    /* The folio's user word, see daxtier_folio_set_user(); 0 for blocks. */
    uint64_t user;
    /* DAXTIER_HELD_BLOCKS, DAXTIER_HELD_FOLIO or DAXTIER_HELD_SETTLING. */
    uint32_t holder;
    /* References to the folio; 0 for blocks. */
    uint32_t ref_count;
    /* What stands in the way of moving it, for a person to read. */
    char reason[64];
};

/*
 * Decides what becomes of an access to lost memory: len_bytes bytes from address on are lost, the page of the access
 * among them. is_damaged is not 0 when the machine found the memory damaged, and 0 when the device is gone.
 *
 * Runs in a signal handler, on the thread that made the access, so it may do what a signal handler may do: it neither
 * allocates nor locks, and calls nothing of this library. Returns one of the DAXTIER_LOSS_ answers.
 */
typedef int (*daxtier_loss_handler)(void *address, size_t len_bytes, int is_damaged, void *user);

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Returns the version of the library that is running, such as "0.1.0".
 *
 * Threads: any number at once. Blocks: no. After fork: works. Signal handlers: allowed.
 * Lifetime: the text is static.
 */
const char *daxtier_version(void);

/*
 * Returns the version of the library that is running as 0x00MMmmpp. It may be newer than DAXTIER_VERSION_NUMBER,
 * which is the version that the program was compiled with.
 *
 * Threads: any number at once. Blocks: no. After fork: works. Signal handlers: allowed. Lifetime: a plain number.
 */
uint32_t daxtier_version_number(void);

/*
 * Returns a short text for a code, in English, without a full stop.
 *
 * A negative code from -1 to -999 that has no DAXTIER_ name is the negative errno value of a system call that the
 * kernel refused, and the text says only that; see strerror(3) with the positive value.
 *
 * Threads: any number at once. Blocks: no. After fork: works. Signal handlers: allowed.
 * Lifetime: the text is static. Never returns NULL.
 */
const char *daxtier_strerror(int code);

/*
 * Returns what the last failed call of this thread saw, with values, for a person to read. Empty before the first
 * failure. Successful calls leave it alone.
 *
 * Threads: each has its own. Blocks: no. After fork: the forking thread's text is kept in the child.
 * Signal handlers: not allowed.
 * Lifetime: valid until the next failure or the end of this thread; copy it to keep it. Never returns NULL.
 */
const char *daxtier_last_error(void);

/*
 * Opens a pool.
 *
 * config is a configuration in the grammar that the environment, files and the daxtier program share: settings as
 * "KEY=VALUE", separated by blanks or new lines, such as "fast=64M slow=emulated:2G policy=fill". See
 * the README. "fast=80%" says no more than the defaults do. stats and on_error have no effect here. Environment
 * variables are not read.
 *
 * Threads: any number at once. Blocks: on the kernel and the devices.
 * After fork: the child has a copy of its own, under the same number, as far as its devices allow.
 * Signal handlers: not allowed. Lifetime: config is not used after the call; close the pool with daxtier_close().
 * Returns 0; DAXTIER_ENULL; DAXTIER_ECONFIG when the text is wrong (daxtier_last_error() names the word);
 * DAXTIER_ENODEV, DAXTIER_EBUSY or another negative errno value when a device cannot be had; DAXTIER_ENOMEM.
 */
int daxtier_open(const char *config, daxtier_pool *pool);

/*
 * Closes a pool and gives its devices back, unless folios or blocks of it are in use.
 *
 * With DAXTIER_EBUSY the pool stays open and as it was; folios then receives up to capacity of the live folios,
 * and nr_folios how many there are, which may be more, or 0 when only blocks are in use. Set folios[0].size: it
 * says how long each element is. Both may be NULL, folios only with capacity 0.
 *
 * Threads: one, while no other call for this pool is under way. Blocks: on the kernel. After fork: works in the
 * child, for its copy. Signal handlers: not allowed. Lifetime: the pool's number and every address in the pool end
 * with success.
 * Returns 0; DAXTIER_EHANDLE; DAXTIER_EBUSY; DAXTIER_ENULL, DAXTIER_ESIZE for folios.
 */
int daxtier_close(daxtier_pool pool, struct daxtier_folio_info *folios, size_t capacity, size_t *nr_folios);

/*
 * Writes figures of a pool. Gives free memory of the heap back to its tiers first, so that they show what is in use.
 *
 * Threads: any number at once. Blocks: briefly, on the pool's locks. After fork: the child's copy has its own.
 * Signal handlers: not allowed. Lifetime: stats is not used after the call.
 * Returns 0; DAXTIER_EHANDLE; DAXTIER_ENULL; DAXTIER_ESIZE.
 */
int daxtier_stats(daxtier_pool pool, struct daxtier_stats *stats);

/*
 * Writes figures of one tier of a pool; 0 is the fastest. Takes DAXTIER_DEFAULT_POOL.
 *
 * Threads: any number at once. Blocks: briefly, on the pool's locks. After fork: the child's copy has its own.
 * Signal handlers: not allowed. Lifetime: stats is not used after the call.
 * Returns 0; DAXTIER_ENOENT past the last tier; DAXTIER_EHANDLE; DAXTIER_ENODEV without a default pool;
 * DAXTIER_ENULL; DAXTIER_ESIZE.
 */
int daxtier_tier_stats(daxtier_pool pool, uint32_t tier, struct daxtier_tier_stats *stats);

/*
 * Says where the byte at address lies now. Takes DAXTIER_DEFAULT_POOL, which here stands for every pool of the
 * process, the preload library's and other copies' included.
 *
 * Threads: any number at once. Blocks: briefly, on the lock of the byte's slot. After fork: answers for this
 * process. Signal handlers: not allowed. Lifetime: the answer holds until the memory is freed or moved.
 * Returns 0; DAXTIER_EFOREIGN when the byte is in no folio of the pool; DAXTIER_EHANDLE; DAXTIER_ENULL;
 * DAXTIER_ESIZE.
 */
int daxtier_where(daxtier_pool pool, const void *address, struct daxtier_placement *placement);

/*
 * Lists the dax devices of the machine: writes up to capacity of them, and to nr_devices how many there are, which
 * may be more. Set devices[0].size: it says how long each element is. devices may be NULL with capacity 0.
 *
 * A device that is listed as usable is still not used by daxtier before somebody names it.
 *
 * Threads: any number at once. Blocks: on reading sysfs. After fork: works. Signal handlers: not allowed.
 * Lifetime: devices is not used after the call.
 * Returns 0, without devices too; DAXTIER_ENULL; DAXTIER_ESIZE.
 */
int daxtier_device_list(struct daxtier_device_info *devices, size_t capacity, size_t *nr_devices);

/*
 * Opens a device as a pgmap. Nothing of the device is claimed before the first folio.
 *
 * device is written as in a configuration: "/dev/dax0.0", "emulated:2G", "node:1:4G", with ",size=SIZE" and
 * ",range=OFFSET+LENGTH" where only a part is wanted. options may be NULL.
 *
 * Threads: any number at once. Blocks: on the kernel. After fork: the pgmap is the parent's; in the child calls for
 * it return DAXTIER_EFORKED, unless its memory is private to each process (node:N).
 * Signal handlers: not allowed. Lifetime: device, options and its name are not used after the call, context is
 * until daxtier_pgmap_close() succeeds.
 * Returns 0; DAXTIER_ENULL; DAXTIER_ECONFIG for a device that cannot be read; DAXTIER_ENODEV, DAXTIER_EBUSY or another
 * negative errno value when it cannot be had; DAXTIER_ESIZE; DAXTIER_E2BIG; DAXTIER_EORDER; DAXTIER_ECHOICE;
 * DAXTIER_EINVAL.
 */
int daxtier_pgmap_open(const char *device, const struct daxtier_pgmap_options *options, daxtier_pgmap *pgmap);

/*
 * Kills a pgmap: from now on requests return DAXTIER_EDYING. Folios in use stay valid.
 *
 * Threads: any number at once; the first kills. Blocks: no. After fork: DAXTIER_EFORKED in the child.
 * Signal handlers: not allowed. Lifetime: the pgmap stays open until daxtier_pgmap_close().
 * Returns 0; DAXTIER_EDYING if it was killed before; DAXTIER_EPERM for a pgmap of a pool; DAXTIER_EHANDLE;
 * DAXTIER_EFORKED.
 */
int daxtier_pgmap_kill(daxtier_pgmap pgmap);

/*
 * Waits until no folio of a killed pgmap is in use, at most timeout_ms milliseconds.
 *
 * With DAXTIER_ETIMEDOUT holders receives up to capacity of the folios in use, and nr_holders how many there
 * are, which may be more. Set holders[0].size: it says how long each element is. Both may be NULL, holders only
 * with capacity 0.
 *
 * Threads: any number at once. Blocks: up to timeout_ms. After fork: DAXTIER_EFORKED in the child.
 * Signal handlers: not allowed. Lifetime: holders is not used after the call.
 * Returns 0; DAXTIER_ETIMEDOUT; DAXTIER_EINVAL for a pgmap that was not killed; DAXTIER_EPERM for a pgmap of a pool;
 * DAXTIER_EHANDLE; DAXTIER_EFORKED; DAXTIER_ENULL, DAXTIER_ESIZE for holders.
 */
int daxtier_pgmap_drain(daxtier_pgmap pgmap,
                        uint32_t timeout_ms,
                        struct daxtier_folio_info *holders,
                        size_t capacity,
                        size_t *nr_holders);

/*
 * Closes a pgmap and gives its device back, unless folios of it are in use. A live pgmap is killed first; with
 * DAXTIER_EBUSY it is live again.
 *
 * Threads: one, while no other call for this pgmap is under way. Blocks: on the kernel. After fork: in the child it
 * gives the number back and nothing else. Signal handlers: not allowed. Lifetime: with success the pgmap's number
 * and the context of its callback end.
 * Returns 0; DAXTIER_EBUSY while folios are in use; DAXTIER_EPERM for a pgmap of a pool; DAXTIER_EHANDLE.
 */
int daxtier_pgmap_close(daxtier_pgmap pgmap);

/*
 * Keeps up to count folios of order 9 (2 MiB) ready that are zero already, for requests with DAXTIER_ZERO; a pool's
 * pgmap included. A thread of the library clears free memory for it in the background. 0 ends it.
 *
 * What is ready counts as free, and a request that finds nothing else gets it; it does occupy memory of the machine. The
 * figure prezeroed_bytes says how much is ready now.
 *
 * Threads: any number at once. Blocks: for the time that it takes to clear one folio. After fork: nothing is ready in
 * the child; the call returns DAXTIER_EFORKED for the parent's pgmaps. Signal handlers: not allowed. Lifetime: until
 * the next call or the end of the pgmap.
 * Returns 0; DAXTIER_ENOTSUP for a pgmap whose offsets the caller tracks; DAXTIER_EORDER when it has no folios of
 * order 9; DAXTIER_EDYING; DAXTIER_EFORKED; DAXTIER_EHANDLE; another negative errno value when the thread is refused.
 */
int daxtier_pgmap_keep_zeroed(daxtier_pgmap pgmap,
                              size_t count);

/*
 * Writes figures of a pgmap, a pool's included.
 *
 * Threads: any number at once. Blocks: briefly, on the pgmap's locks. After fork: works; the state is
 * DAXTIER_PGMAP_FORKED for the parent's. Signal handlers: not allowed. Lifetime: stats is not used after the call.
 * Returns 0; DAXTIER_EHANDLE; DAXTIER_ENULL; DAXTIER_ESIZE.
 */
int daxtier_pgmap_stats(daxtier_pgmap pgmap, struct daxtier_pgmap_stats *stats);

/*
 * Allocates count folios of one order from a pgmap, at offsets that the library chooses, as many as there are.
 *
 * flags: DAXTIER_ZERO, one DAXTIER_HINT_ flag. Each folio has one reference, the caller's. The folios never move.
 *
 * Threads: any number at once. Blocks: no, but for short locks and, where an extent is used for the first time, on
 * the kernel. After fork: DAXTIER_EFORKED in the child for the parent's pgmaps. Signal handlers: not allowed.
 * Lifetime: a folio is the caller's until daxtier_folio_put().
 * Returns 0 if at least one was allocated, and then nr_folios says how many; DAXTIER_ENOMEM; DAXTIER_EDYING;
 * DAXTIER_EORDER; DAXTIER_EFLAGS; DAXTIER_ECHOICE; DAXTIER_ENOTSUP for a pgmap whose offsets the caller tracks;
 * DAXTIER_EINVAL for count 0; DAXTIER_EHANDLE; DAXTIER_EFORKED; DAXTIER_ENULL.
 */
int daxtier_pgmap_alloc(daxtier_pgmap pgmap,
                        uint32_t order,
                        uint64_t flags,
                        size_t count,
                        daxtier_folio *folios,
                        size_t *nr_folios);

/*
 * Requests the folio of one order at one offset, which must be idle: all its pages go from unused to one reference,
 * the caller's. The folio never moves, so it may be used for direct I/O, io_uring or RDMA.
 *
 * Threads: any number at once; of two requests for the same pages one gets them. Blocks: no, but for short locks and,
 * where an extent is used for the first time, on the kernel. After fork: DAXTIER_EFORKED in the child for the
 * parent's pgmaps. Signal handlers: not allowed. Lifetime: the folio is the caller's until daxtier_folio_put(), and
 * keeps its pgmap open.
 * Returns 0; DAXTIER_EBUSY when a page is in use; DAXTIER_EOFFSET beyond the end; DAXTIER_EALIGN for an offset that is
 * no multiple of the folio's pages; DAXTIER_EORDER; DAXTIER_EDYING; DAXTIER_ENOMEM at the pgmap's limit;
 * DAXTIER_ECORRUPT; DAXTIER_EFORKED; DAXTIER_EHANDLE; DAXTIER_ENULL.
 */
int daxtier_folio_request(daxtier_pgmap pgmap, uint64_t offset, uint32_t order, daxtier_folio *folio);

/*
 * Allocates a folio of a pool where its policy says.
 *
 * flags: DAXTIER_ZERO, DAXTIER_MOVABLE (orders 9 and above), one DAXTIER_TIER_ flag, one DAXTIER_HINT_ flag.
 * Without DAXTIER_MOVABLE the folio never moves.
 *
 * Threads: any number at once. Blocks: no, but for short locks and, where memory is used for the first time, on the
 * kernel. After fork: the folio is the parent's; in the child calls for it return DAXTIER_EFORKED where its memory is
 * not private. Signal handlers: not allowed. Lifetime: the folio is the caller's until daxtier_folio_put(); the pool
 * cannot be closed before.
 * Returns 0; DAXTIER_ENOMEM; DAXTIER_EORDER; DAXTIER_EFLAGS; DAXTIER_ECHOICE; DAXTIER_ENODEV when the pool has no
 * such tier; DAXTIER_EHANDLE; DAXTIER_ENULL.
 */
int daxtier_folio_alloc(daxtier_pool pool, uint32_t order, uint64_t flags, daxtier_folio *folio);

/*
 * Allocates count folios of one order from a pool, as many as there are. Otherwise as daxtier_folio_alloc().
 *
 * Threads: any number at once. Blocks: as daxtier_folio_alloc(). After fork: as daxtier_folio_alloc().
 * Signal handlers: not allowed. Lifetime: each folio is the caller's until its daxtier_folio_put().
 * Returns 0 if at least one was allocated, and then nr_folios says how many; DAXTIER_EINVAL for count 0; the codes
 * of daxtier_folio_alloc().
 */
int daxtier_folio_alloc_bulk(daxtier_pool pool,
                             uint32_t order,
                             uint64_t flags,
                             size_t count,
                             daxtier_folio *folios,
                             size_t *nr_folios);

/*
 * Adds a reference to a folio that the caller has a reference to.
 *
 * Threads: any number at once. Blocks: no. After fork: DAXTIER_EFORKED in the child for the parent's folios.
 * Signal handlers: not allowed. Lifetime: each reference needs its own daxtier_folio_put().
 * Returns 0; DAXTIER_ESTALE when the folio is gone; DAXTIER_EHANDLE for a number that is no folio; DAXTIER_EFORKED;
 * DAXTIER_ECORRUPT.
 */
int daxtier_folio_get(daxtier_folio folio);

/*
 * Takes a reference to the live folio that covers a page, if there is one.
 *
 * Threads: any number at once, against any put. Blocks: no. After fork: DAXTIER_EFORKED in the child for the parent's
 * pgmaps. Signal handlers: not allowed. Lifetime: the reference needs its own daxtier_folio_put().
 * Returns 0; DAXTIER_ENOENT when the page is idle or the offset lies beyond the end; DAXTIER_EHANDLE; DAXTIER_ENULL.
 */
int daxtier_folio_try_get(daxtier_pgmap pgmap, uint64_t offset, daxtier_folio *folio);

/*
 * Puts one reference. The last put frees the folio and then runs the free callback of its pgmap once, inside this
 * call and on this thread.
 *
 * Threads: any number at once; any thread may put. Blocks: no, but for short locks, and for as long as the callback
 * takes. After fork: DAXTIER_EFORKED in the child for the parent's folios, and nothing happens.
 * Signal handlers: not allowed. Lifetime: the caller's reference ends with success; after the last one every call
 * with this number returns DAXTIER_ESTALE.
 * Returns 0; DAXTIER_ESTALE when the folio is gone; DAXTIER_EHANDLE for a number that is no folio; DAXTIER_EFORKED;
 * DAXTIER_ECORRUPT.
 */
int daxtier_folio_put(daxtier_folio folio);

/*
 * Writes what a folio is: address, pgmap, offset, order, tier, user word.
 *
 * Threads: any number at once. Blocks: no, but for the kernel where an extent is mapped for the first time.
 * After fork: DAXTIER_EFORKED in the child for the parent's folios. Signal handlers: not allowed.
 * Lifetime: the address is valid as long as the caller has a reference. info is not used after the call.
 * Returns 0; DAXTIER_ESTALE when the folio is gone; DAXTIER_EHANDLE for a number that is no folio; DAXTIER_EFORKED;
 * DAXTIER_ENULL; DAXTIER_ESIZE.
 */
int daxtier_folio_info(daxtier_folio folio, struct daxtier_folio_info *info);

/*
 * Takes a reference to the live folio that holds the byte at address: an address from daxtier_folio_info(), or one
 * past it inside the folio. Blocks of daxtier_malloc() are in no folio of the caller's; use daxtier_where() for them.
 *
 * Threads: any number at once, against any put. Blocks: no. After fork: DAXTIER_EFORKED in the child for the parent's
 * folios. Signal handlers: not allowed. Lifetime: the reference needs its own daxtier_folio_put().
 * Returns 0; DAXTIER_EFOREIGN when the address is in no pgmap; DAXTIER_ENOENT when its page is idle; DAXTIER_ENULL.
 */
int daxtier_folio_from_address(const void *address, daxtier_folio *folio);

/*
 * Sets the user word of a folio: any number of the caller's, 0 at first. The free callback receives the last one.
 *
 * Threads: any number at once; the last one stays. Blocks: no. After fork: DAXTIER_EFORKED in the child for the
 * parent's folios. Signal handlers: not allowed. Lifetime: until the folio is gone.
 * Returns 0; DAXTIER_ESTALE when the folio is gone; DAXTIER_EHANDLE for a number that is no folio; DAXTIER_EFORKED.
 */
int daxtier_folio_set_user(daxtier_folio folio, uint64_t user);

/*
 * Allocates a block of size bytes from the heap of a pool. Takes DAXTIER_DEFAULT_POOL.
 *
 * align is 0 (as malloc(3)) or a power of two up to 1 GiB; alignments above 64 KiB cost whole slots of 2 MiB.
 * flags: DAXTIER_ZERO, one DAXTIER_TIER_ flag, one DAXTIER_HINT_ flag. A size of 0 gives a block of its own.
 *
 * Threads: any number at once. Blocks: no, but for short locks when the heap grows. After fork: the child has its
 * own copy of every block. Signal handlers: not allowed. Lifetime: the block is the caller's until daxtier_free() or
 * daxtier_realloc(); the pool cannot be closed before.
 * Returns 0; DAXTIER_ENOMEM; DAXTIER_EALIGN; DAXTIER_EFLAGS; DAXTIER_ECHOICE; DAXTIER_EHANDLE; DAXTIER_ENODEV when
 * the pool has no such tier, or there is no default pool; DAXTIER_ENULL.
 */
int daxtier_malloc(daxtier_pool pool, size_t size, size_t align, uint64_t flags, void **block);

/*
 * Resizes a block, in place or by copying it to a new one; the bytes up to the smaller size are kept. With NULL as
 * old it allocates. Takes DAXTIER_DEFAULT_POOL: the block may then be of any pool of the process and stays there.
 *
 * size is not 0. align and flags are those of daxtier_malloc(). With DAXTIER_ZERO the bytes beyond the old
 * size are zero only if the block was allocated with DAXTIER_ZERO and never resized without.
 *
 * Threads: any number at once, for different blocks. Blocks: as daxtier_malloc(). After fork: works on the child's
 * own copy. Signal handlers: not allowed. Lifetime: with success the old address ends, even where the new one
 * equals it; on failure the old block is untouched and still the caller's.
 * Returns 0; DAXTIER_EINVAL for size 0; DAXTIER_ESTALE when the block at old was freed before; DAXTIER_EFOREIGN when
 * no block begins there; the codes of daxtier_malloc().
 */
int daxtier_realloc(daxtier_pool pool, void *old, size_t size, size_t align, uint64_t flags, void **block);

/*
 * Frees a block. NULL is allowed and does nothing. Takes DAXTIER_DEFAULT_POOL: the block may then be of any pool of
 * the process, the preload library's and other copies' included.
 *
 * A pointer to anything that is no block is refused, with no harm done: memory of others, an address inside a block, a
 * block that was freed before. Three mistakes are not told: a second free after the memory went into other blocks,
 * two frees at the same time, and an address inside a block, at a multiple of 16, near blocks of a larger
 * alignment.
 *
 * Threads: any number at once, for different blocks; any thread may free a block. Blocks: no, but for short locks.
 * After fork: frees the child's own copy. Signal handlers: not allowed. Lifetime: the block ends with success.
 * Returns 0; DAXTIER_ESTALE for a block that was freed before; DAXTIER_EFOREIGN when no block begins there;
 * DAXTIER_EHANDLE.
 */
int daxtier_free(daxtier_pool pool, void *block);

/*
 * Writes how many bytes the block may use, at least what was asked for. Takes DAXTIER_DEFAULT_POOL: any pool of the
 * process.
 *
 * Threads: any number at once. Blocks: no. After fork: works. Signal handlers: not allowed. Lifetime: the answer
 * holds until the block is freed or resized.
 * Returns 0; DAXTIER_ESTALE for a block that was freed; DAXTIER_EFOREIGN when no block begins there; DAXTIER_EHANDLE;
 * DAXTIER_ENULL.
 */
int daxtier_usable_size(daxtier_pool pool, const void *block, size_t *size);

/*
 * Gives advice about the whole pages in [address, address + size), which is memory of the pool. advice is a
 * DAXTIER_ADVICE_ number; others are kept for later versions.
 *
 * Threads: any number at once; with DAXTIER_ADVICE_DISCARD nobody else uses the range. Blocks: while pages are
 * backed. After fork: concerns this process alone. Signal handlers: not allowed. Lifetime: nothing is kept.
 * Returns 0; DAXTIER_ECHOICE for unknown advice; DAXTIER_EFOREIGN when a page of the range is not of the pool, and
 * then nothing has changed; DAXTIER_EHANDLE; DAXTIER_ENULL.
 */
int daxtier_advise(daxtier_pool pool, void *address, size_t size, uint32_t advice);

/*
 * Moves the slots of 2 MiB that a range touches to a tier, and waits until something has come of each. tier is
 * DAXTIER_TIER_FAST or DAXTIER_TIER_SLOW. Takes DAXTIER_DEFAULT_POOL, as all calls here that name a pool: the range is
 * then of malloc(3) under the preload library.
 *
 * Addresses stay, and other threads may use the memory all the while; who touches what is just being moved waits for
 * less than a millisecond as a rule. A slot that can't be moved stays where it is: counts, which may be NULL, says
 * how many had which outcome. Only blocks move, never folios. The first call of a process starts the library's
 * workers and a thread beside them.
 *
 * Threads: any number at once. Blocks: until the slots are moved. After fork: moves the child's own memory.
 * Signal handlers: not allowed. Lifetime: counts is not used after the call.
 * Returns 0; DAXTIER_ENOTSUP when the configuration says migrate=off; DAXTIER_EPERM when the process may not (see
 * daxtier doctor), or another negative errno value when the kernel can't; DAXTIER_EFOREIGN when the range is not in blocks; DAXTIER_ECHOICE; DAXTIER_ENODEV when the pool has
 * no such tier; DAXTIER_EHANDLE; DAXTIER_ESIZE.
 */
int daxtier_migrate(daxtier_pool pool,
                    const void *address,
                    size_t size,
                    uint64_t tier,
                    struct daxtier_migration *counts);

/*
 * As daxtier_migrate(), without waiting. The request is freed with daxtier_move_free(), which does not stop it.
 *
 * Threads: any number at once. Blocks: briefly. After fork: as daxtier_migrate(); the parent's requests are not the
 * child's. Signal handlers: not allowed. Lifetime: the number is the caller's until daxtier_move_free().
 * Returns as daxtier_migrate(); DAXTIER_EBUSY when too many requests are waiting; DAXTIER_ENULL; DAXTIER_ELIMIT.
 */
int daxtier_migrate_async(daxtier_pool pool, const void *address, size_t size, uint64_t tier, daxtier_move *request);

/*
 * Waits until something has come of every slot of a request, at most timeout_ms milliseconds, and writes what has
 * come of how many so far. counts may be NULL.
 *
 * Threads: any number at once. Blocks: up to timeout_ms. After fork: the parent's requests never end in the child.
 * Signal handlers: not allowed. Lifetime: counts is not used after the call.
 * Returns 0; DAXTIER_ETIMEDOUT, with counts written, when the time is up before; DAXTIER_EHANDLE; DAXTIER_ESIZE.
 */
int daxtier_move_wait(daxtier_move request, uint32_t timeout_ms, struct daxtier_migration *counts);

/*
 * Lets the slots of a request that nothing has come of yet stay where they are.
 *
 * Threads: any number at once. Blocks: no. After fork: has no effect on the parent's requests. Signal handlers: not
 * allowed. Lifetime: the request is still to be freed.
 * Returns 0; DAXTIER_EHANDLE.
 */
int daxtier_move_cancel(daxtier_move request);

/*
 * Frees the number of a request. A request that is under way goes on.
 *
 * Threads: one, while no other call for this request is under way. Blocks: no. After fork: works in the child.
 * Signal handlers: not allowed. Lifetime: ends the number.
 * Returns 0; DAXTIER_EHANDLE.
 */
int daxtier_move_free(daxtier_move request);

/*
 * Says in which tier a range is wanted: it is moved there in the background as far as possible. Nothing moves by
 * itself in this version, so it stays there until somebody asks for another tier.
 *
 * Threads: any number at once. Blocks: briefly. After fork: as daxtier_migrate(). Signal handlers: not allowed.
 * Lifetime: nothing is kept.
 * Returns as daxtier_migrate_async().
 */
int daxtier_prefer(daxtier_pool pool, const void *address, size_t size, uint64_t tier);

/*
 * Keeps the slots of 2 MiB that a range touches where they are until daxtier_unpin(): for direct I/O, RDMA, and
 * futexes that processes share. When the call returns none of them is being moved. Pins count; they end with the
 * memory.
 *
 * Threads: any number at once. Blocks: while a slot of the range is being moved. After fork: the child has the pins
 * too. Signal handlers: not allowed. Lifetime: until daxtier_unpin() of the same range, or the end of the memory.
 * Returns 0; DAXTIER_EFOREIGN when the range is not in blocks; DAXTIER_EHANDLE.
 */
int daxtier_pin(daxtier_pool pool, const void *address, size_t size);

/*
 * Ends a daxtier_pin() of the same range.
 *
 * Threads: any number at once. Blocks: as daxtier_pin(). After fork: works on the child's own pins. Signal handlers:
 * not allowed. Lifetime: nothing is kept.
 * Returns as daxtier_pin().
 */
int daxtier_unpin(daxtier_pool pool, const void *address, size_t size);

/*
 * Writes what came of all requests to move the pool's memory. Takes DAXTIER_DEFAULT_POOL. A forked child's begin anew.
 *
 * Threads: any number at once; the figures may be a moment apart. Blocks: no. After fork: works on the child's own.
 * Signal handlers: not allowed. Lifetime: stats is not used after the call.
 * Returns 0; DAXTIER_EHANDLE; DAXTIER_ENODEV when there is no default pool; DAXTIER_ENULL; DAXTIER_ESIZE.
 */
int daxtier_migration_stats(daxtier_pool pool, struct daxtier_migration_stats *stats);

/*
 * Adds a slow device to a pool. Memory is placed there from now on.
 *
 * device is written as in the setting slow=, such as "/dev/dax1.0" or "/dev/dax1.0,size=4G".
 *
 * Threads: any number at once. Blocks: on the kernel and the device. After fork: adds to the child's copy of the pool.
 * Signal handlers: not allowed. Lifetime: device is not used after the call.
 * Returns 0; DAXTIER_ECONFIG when the text is wrong; DAXTIER_ENODEV when there is no such device or the pool has no slow
 * tier; DAXTIER_EBUSY or another negative errno value when the device cannot be had or is there already;
 * DAXTIER_EHANDLE; DAXTIER_ENULL.
 */
int daxtier_device_add(daxtier_pool pool,
                       const char *device);

/*
 * Places nothing more on a slow device, and moves what is there to other devices or to DRAM, until nothing is left or
 * the time is up. device is its name as daxtier_where() gives it.
 *
 * With DAXTIER_ETIMEDOUT things are left: held receives up to capacity of them and nr_held how many there are,
 * which may be more. They stay valid; another call tries again. Set held[0].size: it says how long each element is. Both
 * may be NULL, held only with capacity 0. Folios never move: their holders put them.
 *
 * Threads: any number at once, and others may use the memory meanwhile. Blocks: up to about timeout_ms. After fork:
 * drains the child's own device. Signal handlers: not allowed. Lifetime: nothing is kept.
 * Returns 0 when the device is drained; DAXTIER_ETIMEDOUT; DAXTIER_ENODEV when the pool has no such device;
 * DAXTIER_EHANDLE; DAXTIER_ENULL; DAXTIER_ESIZE.
 */
int daxtier_device_drain(daxtier_pool pool,
                         const char *device,
                         uint32_t timeout_ms,
                         struct daxtier_held *held,
                         size_t capacity,
                         size_t *nr_held);

/*
 * Lets a device that is drained, or being drained, serve again.
 *
 * Threads: any number at once. Blocks: briefly. After fork: as daxtier_device_add(). Signal handlers: not allowed.
 * Lifetime: nothing is kept.
 * Returns 0; DAXTIER_EINVAL when it serves already; DAXTIER_ENODEV when the pool has no such device; DAXTIER_EHANDLE;
 * DAXTIER_ENULL.
 */
int daxtier_device_resume(daxtier_pool pool, const char *device);

/*
 * Takes a drained device out of a pool, so that other processes can have it.
 *
 * Threads: any number at once. Blocks: on the kernel. After fork: as daxtier_device_add(). Signal handlers: not allowed.
 * Lifetime: nothing is kept.
 * Returns 0; DAXTIER_EBUSY while something is left on it; DAXTIER_EINVAL before it was drained; DAXTIER_ENODEV when the
 * pool has no such device; DAXTIER_EHANDLE; DAXTIER_ENULL.
 */
int daxtier_device_remove(daxtier_pool pool,
                          const char *device);

/*
 * Changes how many bytes of a slow device this process uses at most; all of it with UINT64_MAX. What is idle above that is
 * given back, so that other processes can claim it. excess_bytes, which may be NULL, receives how much is claimed beyond it,
 * in extents of 128 MiB of which something is in use: what is there stays valid, nothing more is claimed until it is less, and
 * daxtier_release_idle() gives back what becomes idle.
 * Rounded down to the device's granule.
 *
 * Threads: any number at once. Blocks: on the kernel, and on clearing the memory with scrub=on-release. After fork: as
 * daxtier_device_add(). Signal handlers: not allowed. Lifetime: nothing is kept.
 * Returns 0; DAXTIER_ENODEV when the pool has no such device; DAXTIER_EHANDLE; DAXTIER_ENULL.
 */
int daxtier_device_resize(daxtier_pool pool,
                          const char *device,
                          uint64_t size_bytes,
                          uint64_t *excess_bytes);

/*
 * Gives parts of slow devices back of which nothing is in use, so that other processes can claim them. released_bytes, which
 * may be NULL, receives how much that was. The pool claims anew when it needs more.
 *
 * Threads: any number at once. Blocks: on the kernel, and on clearing the memory with scrub=on-release. After fork: as
 * daxtier_device_add(). Signal handlers: not allowed. Lifetime: nothing is kept.
 * Returns 0; DAXTIER_EHANDLE.
 */
int daxtier_release_idle(daxtier_pool pool,
                         uint64_t *released_bytes);

/*
 * Has handler decide from now on what becomes of accesses to lost memory, for everything of this process that this copy
 * of the library handed out; NULL leaves it to the setting on_loss. Signals for other memory go where they went.
 *
 * A damaged page is replaced where the device maps single pages, and is a SIGBUS elsewhere.
 *
 * Threads: one at a time. Blocks: no. After fork: the child has the handler too. Signal handlers: not allowed.
 * Lifetime: handler and user stay valid until another handler was set and no call is under way.
 * Returns 0.
 */
int daxtier_on_loss(daxtier_loss_handler handler,
                    void *user);

#ifdef __cplusplus
}
#endif

#endif  /* DAXTIER_H */
