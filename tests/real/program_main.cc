#include <cstdio>

extern "C" const char *program(void);

int main() { return std::puts(program()) < 0; }
