/* Uses a function of another unit: calls it by name and by pointers, which it keeps in code, data and a variable. */

long target(long x);

/* Volatile: read it, do not know it. */
static long (*const volatile table[])(long) = {0, target};
static long (*kept)(long);

long outside(void) { return (long)target; }

long outside_data(void) { return (long)table[1]; }

long keep(void) {
    kept = target;
    return (long)kept;
}

long call_kept(long x) { return kept(x); }

long call_by_name(long x) { return target(x); }
