/* The variable of here.rs. In C, where a thread's variable is a load and not a call. */
#include <stdbool.h>
#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden")))

/* As `Here` in here.rs. */
struct here {
    uint32_t depth;
    uint32_t stripe;
    bool in_service;
};

static _Thread_local struct here here;

HIDDEN void *daxtier_here(void)
{
    return &here;
}
