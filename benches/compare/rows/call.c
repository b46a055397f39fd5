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

/* Parts of a guard, on the words of the thread: what it looks at besides the head, and whether it knows that it is nested. */
enum { GATE = 1, DEPTH = 2 };

static inline long parts(jitcast_thread *thread, long count, const int what)
{
    uint64_t applied = __atomic_load_n(thread->applied, __ATOMIC_ACQUIRE);
    for (; count > 0; count--) {
        if ((what & DEPTH) != 0 && JITCAST_SELDOM(thread->depth != 0))
            return count;
        if ((what & GATE) != 0) {
            applied = __atomic_load_n(thread->applied, __ATOMIC_ACQUIRE);
            if (JITCAST_SELDOM(applied == 0))
                return count;
        }
        __atomic_store_n(thread->pin, applied, __ATOMIC_RELAXED);
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        if (JITCAST_SELDOM(__atomic_load_n(thread->head, __ATOMIC_ACQUIRE) != applied))
            return count;
        if ((what & GATE) != 0 && JITCAST_SELDOM(__atomic_load_n(thread->applied, __ATOMIC_RELAXED) != applied))
            return count;
        if ((what & DEPTH) != 0)
            thread->depth = 1;
        __asm__ volatile("" ::: "memory");
        if ((what & DEPTH) != 0 && JITCAST_SELDOM(thread->depth != 1))
            return count;
        if ((what & GATE) != 0 && JITCAST_SELDOM(__atomic_load_n(thread->alive, __ATOMIC_RELAXED) != JITCAST_THREAD_ALIVE))
            return count;
        if ((what & DEPTH) != 0)
            thread->depth = 0;
        __atomic_store_n(thread->pin, (uint64_t)0, __ATOMIC_RELEASE);
    }
    return 0;
}

long head_alone(jitcast_thread *thread, long count)
{
    return parts(thread, count, 0);
}

long head_and_gate(jitcast_thread *thread, long count)
{
    return parts(thread, count, GATE);
}

long head_gate_and_depth(jitcast_thread *thread, long count)
{
    return parts(thread, count, GATE | DEPTH);
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
