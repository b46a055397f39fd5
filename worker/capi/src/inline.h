/*
 * Entering and leaving without a call: what Door::enter (runtime/src/gate.rs) and pin::leave (runtime/src/pin.rs) do, on
 * the same words. Everything but the common case is left to the library, which does the whole again. Hence a thread may
 * enter by one of both ways and leave by the other.
 *
 * `thread` is the calling thread's, and not NULL.
 */

/* What seldom holds: the common case is laid out in one piece. */
#define JITCAST_SELDOM(condition) __builtin_expect((condition) != 0, 0)

/* The thread's pin, in the worker's mailbox: 0 where it is outside. */
static inline uint64_t *jitcast_thread_pin(const jitcast_thread *thread)
{
    return (uint64_t *)((uintptr_t)thread + JITCAST_THREAD_TO_PIN);
}

/**
 * Enters a guard: applies what is new, unless the thread is inside already, and pins the thread. `token`, if it is not
 * NULL, is for jitcast_unwind.
 *
 * Errors: as jitcast_enter.
 */
static inline jitcast_status jitcast_thread_enter(jitcast_thread *thread, jitcast_token *token)
{
    uint64_t *const pin = jitcast_thread_pin(thread);
    const uint32_t polls = thread->polls;
    uint32_t depth = 1;
    /* Every 65,536th poll tends the worker; each is slow in one that membarrier(2) cannot reach, and that executes fences, and in a
       child that is no worker, where all these words are zeros. */
    if (JITCAST_SELDOM(polls == 0))
        return jitcast_enter_slowly(thread, token);
    if (JITCAST_SELDOM(__atomic_load_n(pin, __ATOMIC_RELAXED) != 0)) {
        depth = ++thread->nested + 1;
    } else {
        /* Acquire: pairs with the release in Door::open. Who sees the generation does not see a door that was open before. */
        const uint64_t generation = __atomic_load_n(&thread->generation, __ATOMIC_ACQUIRE);
        const uint64_t *head;
        thread->polls = polls - 1;
        /* The pin, then the head, with the light half of a barrier between them (pin::light_barrier): pairs with the
           membarrier(2) that the compiler process executes between publishing and looking at pins, so either it sees
           this pin, or this thread a head at least as new as what was published; and with the one of who applies, after
           shutting the door: it sees this pin, or this thread a word that no generation equals. */
        __atomic_store_n(pin, generation, __ATOMIC_RELAXED);
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        /* Acquire: pair with the releases in Door::open and of the head in Ring::publish. */
        head = __atomic_load_n(&thread->head, __ATOMIC_ACQUIRE);
        if (JITCAST_SELDOM(__atomic_load_n(head, __ATOMIC_ACQUIRE) != generation)) {
            __atomic_store_n(pin, (uint64_t)0, __ATOMIC_RELEASE);
            return jitcast_enter_slowly(thread, token);
        }
    }
    if (token != NULL)
        token->depth = depth;
    return JITCAST_STATUS_OK;
}

/**
 * Leaves a guard. The thread holds one: where it does not, nothing happens, and only a host that is compiled with JITCAST_CHECKED is
 * told.
 *
 * Errors: JITCAST_STATUS_FORKED, in a child that is no worker; JITCAST_STATUS_NOT_INSIDE, if JITCAST_CHECKED is defined.
 */
static inline jitcast_status jitcast_thread_leave(jitcast_thread *thread)
{
    const uint32_t nested = thread->nested;
    if (JITCAST_SELDOM(nested != 0)) {
        thread->nested = nested - 1;
        return JITCAST_STATUS_OK;
    }
    /* In a child whose pin is its parent's; or while threads are inside at different generations. */
    if (JITCAST_SELDOM(__atomic_load_n(&thread->alive, __ATOMIC_RELAXED) != JITCAST_THREAD_ALIVE))
        return jitcast_leave_slowly(thread);
#ifdef JITCAST_CHECKED
    if (__atomic_load_n(jitcast_thread_pin(thread), __ATOMIC_RELAXED) == 0)
        return jitcast_leave_slowly(thread);
#endif
    /* Release: pairs with the acquire loads of pins (pin::oldest, Mailbox::pins). What the thread did inside happens
       before what it was inside of is reused. */
    __atomic_store_n(jitcast_thread_pin(thread), (uint64_t)0, __ATOMIC_RELEASE);
    return JITCAST_STATUS_OK;
}

/** How deep the thread is inside, for jitcast_unwind: as jitcast_take_token. */
static inline jitcast_token jitcast_thread_token(const jitcast_thread *thread)
{
    jitcast_token token;
    const int outermost = __atomic_load_n(&thread->alive, __ATOMIC_RELAXED) != 0
                          && __atomic_load_n(jitcast_thread_pin(thread), __ATOMIC_RELAXED) != 0;
    token.depth = thread->nested + (uint32_t)outermost;
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
