/*
 * Entering and leaving without a call: what Gate::enter (runtime/src/gate.rs), pin::enter and pin::leave
 * (runtime/src/pin.rs) do, on the same words. Everything but the common case is left to the library, which does the whole
 * again. Hence a thread may enter by one of both ways and leave by the other.
 *
 * `thread` is the calling thread's, and not NULL.
 */

/* What seldom holds: the common case is laid out in one piece. */
#define JITCAST_SELDOM(condition) __builtin_expect((condition) != 0, 0)

/**
 * Enters a guard: applies what is new, unless the thread is inside already, and pins the thread. `token`, if it is not
 * NULL, is for jitcast_unwind.
 *
 * Errors: as jitcast_enter.
 */
static inline jitcast_status jitcast_thread_enter(jitcast_thread *thread, jitcast_token *token)
{
    const uint32_t depth = thread->depth;
    if (!JITCAST_SELDOM(depth != 0)) {
        uint64_t applied;
        const uint32_t polls = thread->polls;
        /* Every 65,536th poll tends the worker; each is slow in one that membarrier(2) cannot reach, and that executes fences. */
        if (JITCAST_SELDOM(polls == 0))
            return jitcast_enter_slowly(thread, token);
        thread->polls = polls - 1;
        /* Acquire: pairs with the release in Gate::open; what was applied is there. 0: closed, or wiped by a fork. */
        applied = __atomic_load_n(thread->applied, __ATOMIC_ACQUIRE);
        if (JITCAST_SELDOM(applied == 0))
            return jitcast_enter_slowly(thread, token);
        /* The pin, then the head, with the light half of a barrier between them (pin::light_barrier): pairs with the
           membarrier(2) that the compiler process executes between publishing and looking at pins, so either it sees
           this pin, or this thread a head at least as new as what was published. */
        __atomic_store_n(thread->pin, applied, __ATOMIC_RELAXED);
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        /* Acquire: pairs with the release of the head in Ring::publish. The gate once more: who closes it executes a
           barrier before it looks at pins, so it sees this one, or this load sees the 0. */
        if (JITCAST_SELDOM(__atomic_load_n(thread->head, __ATOMIC_ACQUIRE) != applied
                           || __atomic_load_n(thread->applied, __ATOMIC_RELAXED) != applied))
            return jitcast_enter_slowly(thread, token);
    } else if (JITCAST_SELDOM(__atomic_load_n(thread->alive, __ATOMIC_RELAXED) == 0)) {
        /* A child that is no worker, which inherited the guard. */
        return jitcast_enter_slowly(thread, token);
    }
    thread->depth = depth + 1;
    if (token != NULL)
        token->depth = depth + 1;
    return JITCAST_STATUS_OK;
}

/**
 * Leaves a guard.
 *
 * Errors: JITCAST_STATUS_NOT_INSIDE; JITCAST_STATUS_DETACHED.
 */
static inline jitcast_status jitcast_thread_leave(jitcast_thread *thread)
{
    const uint32_t depth = thread->depth;
    if (JITCAST_SELDOM(depth > 1)) {
        thread->depth = depth - 1;
        return JITCAST_STATUS_OK;
    }
    /* Not inside; or in a child whose pin is its parent's; or while threads are inside at different generations. */
    if (JITCAST_SELDOM(depth == 0 || __atomic_load_n(thread->alive, __ATOMIC_RELAXED) != JITCAST_THREAD_ALIVE))
        return jitcast_leave_slowly(thread);
    thread->depth = 0;
    /* Release: pairs with the acquire loads of pins (pin::oldest, Mailbox::pins). What the thread did inside happens
       before what it was inside of is reused. */
    __atomic_store_n(thread->pin, (uint64_t)0, __ATOMIC_RELEASE);
    return JITCAST_STATUS_OK;
}

/** How deep the thread is inside, for jitcast_unwind: as jitcast_take_token. */
static inline jitcast_token jitcast_thread_token(const jitcast_thread *thread)
{
    jitcast_token token;
    token.depth = thread->depth;
    return token;
}

/**
 * What to call for `handle`, which is not NULL, inside a guard of its worker. It is good for as long as the outermost guard:
 * load it again in the next one. To be cast to the function's type.
 */
static inline jitcast_code jitcast_address(const jitcast_handle *handle)
{
    /* Acquire: pairs with the release in Place::store (worker/src/transition.rs): what was bound is there. */
    return (jitcast_code)(uintptr_t)__atomic_load_n(&handle->target, __ATOMIC_ACQUIRE);
}
