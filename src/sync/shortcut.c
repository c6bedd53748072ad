/* The variable of shortcut.h, and how it is closed. In C, where a thread's variable is a load and not a call. */
#include "shortcut.h"

#define HIDDEN __attribute__((visibility("hidden")))

extern const struct mi_theap_s _mi_theap_empty;

/* Only ever read through while it is this one. */
#define CLOSED ((struct mi_theap_s *)&_mi_theap_empty)

HIDDEN _Thread_local struct mi_theap_s *daxtier_shortcut = CLOSED;

HIDDEN void daxtier_shortcut_close(void)
{
    daxtier_shortcut = CLOSED;
}
