/* The driver, natively: runs the scripts named on the command line. */

#include <stdio.h>

long run_script(const char *source, char *out, long out_len);

static char source[1 << 16], out[1 << 16];

int main(int count, char **names) {
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "r");
        if (!file)
            return 1;
        size_t len_read = fread(source, 1, sizeof source - 1, file);
        source[len_read] = 0;
        fclose(file);
        long len = run_script(source, out, sizeof out);
        if (len < 0)
            return 2;
        fwrite(out, 1, (size_t)len, stdout);
    }
    return 0;
}
