/*
 * The shortcut of a thread: what malloc's shortest path takes blocks from without asking anybody.
 *
 * It is closed on a thread that has not allocated yet, in service (service.rs: what the library itself allocates then must
 * not come from what it serves), and when the thread ends. The heap's engine opens it.
 */
#ifndef DAXTIER_SHORTCUT_H
#define DAXTIER_SHORTCUT_H

/* What mimalloc knows of a thread's use of a heap. */
struct mi_theap_s;

/* Never NULL: while it is closed, mimalloc's empty one, which has no block. */
extern _Thread_local __attribute__((visibility("hidden"))) struct mi_theap_s *daxtier_shortcut;

#endif
