/* The same questions, natively. */

#include <stdio.h>

long greet(const char *text), same_addresses(void), same_in_table(void), sees_environment(void), sorts(void);

int main(void) {
    long greeted = greet("greetings\n");
    printf("%ld %ld %ld %ld %ld\n", greeted, same_addresses(), same_in_table(), sees_environment(), sorts());
    return 0;
}
