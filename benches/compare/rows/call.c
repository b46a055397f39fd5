/* What a host in C does, and what published code does: the same source for jitcast and for a shared library. */

#ifdef BENCH_HOST
#include <jitcast.h>

/* The bench is a host in Rust: what is not inline is its worker's. */
static jitcast_status (*enter_otherwise)(jitcast_thread *);
static jitcast_status (*leave_otherwise)(jitcast_thread *);

jitcast_status jitcast_enter_slowly(jitcast_thread *thread, jitcast_token *token)
{
    (void)token;
    return enter_otherwise(thread);
}

jitcast_status jitcast_leave_slowly(jitcast_thread *thread)
{
    return leave_otherwise(thread);
}

void otherwise(jitcast_status (*enter)(jitcast_thread *), jitcast_status (*leave)(jitcast_thread *))
{
    enter_otherwise = enter;
    leave_otherwise = leave;
}

long guards(jitcast_thread *thread, long count)
{
    for (; count > 0; count--) {
        if (jitcast_thread_enter(thread, NULL) != JITCAST_STATUS_OK)
            return count;
        __asm__ volatile("" ::: "memory");
        jitcast_thread_leave(thread);
    }
    return 0;
}

long empty(void *nothing, long count)
{
    (void)nothing;
    for (; count > 0; count--)
        __asm__ volatile("" ::: "memory");
    return 0;
}

/* What is called is loaded anew each time, as a guard would have it. */
long handles(long (*const *cell)(long), long count)
{
    long x = 0;
    for (; count > 0; count--)
        x = __atomic_load_n(cell, __ATOMIC_ACQUIRE)(x);
    return x;
}

/* The same through a pointer that does not change. */
long pointers(long (*pointer)(long), long count)
{
    long x = 0;
    for (; count > 0; count--)
        x = pointer(x);
    return x;
}
#else
extern long adds(long x);

long calls(long count)
{
    long x = 0;
    for (; count > 0; count--)
        x = adds(x);
    return x;
}
#endif
