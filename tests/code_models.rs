//! The same C under every code model and flag that its relocations depend on, executed in real workers, gives
//! what it gives when it is linked natively.

mod common;

use std::process::Command;

use common::process::{finish, jitcast};
use common::require;
use common::scratch::Scratch;
use common::serve::table;

const SOURCE: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static long numbers[64];
long exported = 7;
static const char *const names[] = {"zero", "one", "two", "three"};
static long twice(long x) { return 2 * x; }
long thrice(long x) { return 3 * x; }
static long (*const table[])(long) = {twice, thrice, labs};
static int order(const void *a, const void *b) { return *(const long *)a < *(const long *)b ? -1 : 1; }
static long pick(long x) {
    switch (x) {
    case 0: return 11; case 1: return 5; case 2: return -8; case 3: return 1; case 4: return 90;
    case 5: return -2; case 6: return 17; case 7: return 23; default: return 0;
    }
}
long mix(long seed) {
    char text[64];
    long sum = exported++;
    for (long i = 0; i < 64; i++) numbers[i] = pick(i % 9) * table[i % 3](seed - i);
    qsort(numbers, 64, sizeof *numbers, order);
    for (long i = 0; i < 64; i++) sum = sum * 31 + numbers[i];
    snprintf(text, sizeof text, "%s %ld", names[seed & 3], sum);
    return (long)strlen(text) + sum % 1000003 + (table[1] == thrice) + (table[2] == labs);
}
"#;

const FLAGS: [&str; 12] = [
    "-O0 -fPIC",
    "-O2 -fPIC -fno-plt",
    "-O2",
    "-O3 -fPIC -mno-red-zone -fcf-protection",
    "-Os -fPIC -ffunction-sections -fdata-sections",
    "-O2 -fPIC -fno-plt -g -gz",
    "-O0 -fPIC -mcmodel=medium",
    "-O2 -fPIC -mcmodel=medium -fno-plt",
    "-O0 -fPIC -mcmodel=large",
    "-O2 -fPIC -mcmodel=large",
    "-O0 -fno-pie -mcmodel=large",
    "-O2 -fno-pie -mcmodel=large",
];

const SEEDS: [i64; 3] = [1, -3, 1_000_000];

/// What a native executable prints.
fn native(scratch: &Scratch) -> Vec<String> {
    let main = scratch.write(
        "main.c",
        format!(
            "#include <stdio.h>\nlong mix(long);\nint main(void) {{ {} }}\n",
            SEEDS
                .map(|seed| format!("printf(\"%ld\\n\", mix({seed}));"))
                .join(" ")
        ),
    );
    let (source, program) = (scratch.write("mix.c", SOURCE), scratch.path("native"));
    let built = Command::new("cc")
        .args(["-O1", &source, &main, "-o", &program])
        .status();
    assert!(built.unwrap().success());
    let output = Command::new(&program).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_code_model_computes_what_native_code_computes() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let expected = native(&scratch);
    let source = scratch.write("mix.c", SOURCE);
    for flags in FLAGS {
        let mut command = jitcast(&["run", &source, "--workers", "2", "--cflags", flags]);
        for seed in SEEDS {
            command.arg(format!("--call=mix({seed}) -> i64"));
        }
        let done = finish(&mut command).succeeded();
        for row in &table(&done.stdout)[1..] {
            assert_eq!(row[3..row.len() - 3], expected, "{flags}\n{}", done.stdout);
        }
    }
}
