/* Takes the address of the host's `free` as clang does; GNU ld refuses that in position-independent executables. */

#define _GNU_SOURCE
#include <dlfcn.h>

long same_by_lea(void) {
    void *released;
    __asm__("lea free(%%rip), %0" : "=r"(released));
    return released == dlsym(RTLD_DEFAULT, "free");
}
