/* Compresses and decompresses what looks like a log, and tells a number that depends on every byte. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

static uint64_t mix(uint64_t hash, const unsigned char *bytes, size_t len) {
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

/* The round trip of `megabytes` MB: -1 if what comes back differs, else a hash of what was stored. */
long round_trip(long megabytes) {
    static const char *const words[] = {"GET ", "POST ", "/index.html ", "/score?x=", "200 ", "404 ", "\n", "agent "};
    size_t len = (size_t)megabytes * 1000000, bound = ZSTD_compressBound(len);
    unsigned char *from = malloc(len + 64), *packed = malloc(bound), *back = malloc(len);
    if (!from || !packed || !back)
        return -2;
    uint64_t state = 88172645463325252u;
    for (size_t at = 0; at < len;) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        const char *word = words[state % 8];
        size_t word_len = strlen(word);
        memcpy(from + at, word, word_len);
        from[at + word_len] = (unsigned char)('a' + state / 8 % 26);
        at += word_len + 1;
    }
    size_t packed_len = ZSTD_compress(packed, bound, from, len, 1);
    long result = -1;
    if (!ZSTD_isError(packed_len) && ZSTD_decompress(back, len, packed, packed_len) == len && memcmp(from, back, len) == 0)
        result = (long)(mix(packed_len, packed, packed_len) >> 1);
    free(from), free(packed), free(back);
    return result;
}
