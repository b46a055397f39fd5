#include <stdio.h>

const char *session(void);

int main(void) { return puts(session()) < 0; }
