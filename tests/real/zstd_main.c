#include <stdio.h>
#include <stdlib.h>

long round_trip(long megabytes);

int main(int count, char **arguments) { return printf("%ld\n", round_trip(count > 1 ? atol(arguments[1]) : 1)) < 0; }
