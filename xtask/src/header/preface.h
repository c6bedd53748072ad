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
