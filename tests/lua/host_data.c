/* Refers to the host's data and functions as executables do: by PC-relative fields, without a GOT. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Prints to the host's own streams. */
long greet(const char *text) {
    int put = fputs(text, stdout);
    return put < 0 || fflush(stdout) || fputs(text, stderr) < 0;
}

/* How many of the host's functions and data have here the address that the host itself knows. */
long same_addresses(void) {
    void (*release)(void *) = free;
    return ((void *)release == dlsym(RTLD_DEFAULT, "free"))
           + ((void *)&strlen == dlsym(RTLD_DEFAULT, "strlen"))
           + ((void *)&stdout == dlsym(RTLD_DEFAULT, "stdout"))
           + ((void *)&environ == dlsym(RTLD_DEFAULT, "environ"));
}

/* As above, by a table of pointers. */
static void *const table[] = {(void *)free, (void *)qsort, &stdout, &environ};
static const char *const names[] = {"free", "qsort", "stdout", "environ"};

long same_in_table(void) {
    long same = 0;
    for (int i = 0; i < 4; i++)
        same += table[i] == dlsym(RTLD_DEFAULT, names[i]);
    return same;
}

/* Whether a variable found in the environment is the very string that getenv finds. */
long sees_environment(void) {
    const char *wanted = getenv("JITCAST_LUA_TEST");
    for (char **at = environ; *at; at++)
        if (!strncmp(*at, "JITCAST_LUA_TEST=", 17) && wanted == *at + 17)
            return 1;
    return 0;
}

static int ascending(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* Sorts with a static function as the host's callback. */
long sorts(void) {
    int numbers[100];
    for (int i = 0; i < 100; i++)
        numbers[i] = i * 37 % 100;
    qsort(numbers, 100, sizeof *numbers, ascending);
    for (int i = 0; i < 100; i++)
        if (numbers[i] != i)
            return 0;
    return 1;
}
