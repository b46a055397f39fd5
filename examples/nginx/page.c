/* What the server answers: publish it again with another VERSION while it runs. */

#include <stdint.h>
#include <stdio.h>

#ifndef VERSION
#define VERSION 1
#endif

int64_t page(const char *uri, int64_t uri_len, char *body, int64_t capacity)
{
    return snprintf(body, (size_t)capacity, "version %d of %.*s\n", VERSION, (int)uri_len, uri);
}

int64_t stamp(int64_t status, char *value, int64_t capacity)
{
    return status == 200 ? snprintf(value, (size_t)capacity, "%d", VERSION) : 0;
}
