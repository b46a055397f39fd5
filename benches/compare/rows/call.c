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

/* Parts of a guard, on the words of the thread: the door by which it enters, and guards inside of guards. */
enum { DOOR = 1, NESTING = 2 };

static inline long parts(jitcast_thread *thread, long count, const int what)
{
    uint64_t *const pin = jitcast_thread_pin(thread);
    uint64_t generation = __atomic_load_n(&thread->generation, __ATOMIC_ACQUIRE);
    const uint64_t *head = __atomic_load_n(&thread->head, __ATOMIC_ACQUIRE);
    for (; count > 0; count--) {
        if ((what & NESTING) != 0 && JITCAST_SELDOM(__atomic_load_n(pin, __ATOMIC_RELAXED) != 0))
            return count;
        if ((what & DOOR) != 0)
            generation = __atomic_load_n(&thread->generation, __ATOMIC_ACQUIRE);
        __atomic_store_n(pin, generation, __ATOMIC_RELAXED);
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        if ((what & DOOR) != 0)
            head = __atomic_load_n(&thread->head, __ATOMIC_ACQUIRE);
        if (JITCAST_SELDOM(__atomic_load_n(head, __ATOMIC_ACQUIRE) != generation))
            return count;
        __asm__ volatile("" ::: "memory");
        if ((what & NESTING) != 0 && JITCAST_SELDOM(thread->nested != 0))
            return count;
        if ((what & DOOR) != 0 && JITCAST_SELDOM(__atomic_load_n(&thread->alive, __ATOMIC_RELAXED) != JITCAST_THREAD_ALIVE))
            return count;
        __atomic_store_n(pin, (uint64_t)0, __ATOMIC_RELEASE);
    }
    return 0;
}

long head_alone(jitcast_thread *thread, long count)
{
    return parts(thread, count, 0);
}

long head_and_door(jitcast_thread *thread, long count)
{
    return parts(thread, count, DOOR);
}

long head_door_and_nesting(jitcast_thread *thread, long count)
{
    return parts(thread, count, DOOR | NESTING);
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
