//! Random C programs without undefined behaviour: what they print depends on their seed alone, not on who compiled and
//! linked them, nor where.
//!
//! Arithmetic is unsigned, indices are masked, divisors are odd, and calls carry fuel, so that every program ends.

use std::fmt::Write;

/// What programs may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Thread-local variables.
    pub thread_local: bool,
}

/// A C program: files that are compiled apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Name and text of each.
    pub files: Vec<(String, String)>,
}

/// The function that runs a program: takes a number, prints lines, returns a number.
pub const ENTRY: &str = "entry";

/// A file whose `main` calls [`ENTRY`] with each of `arguments` and prints what it returns.
pub fn main_file(arguments: &[i64]) -> String {
    let mut text = format!("#include <stdio.h>\nlong {ENTRY}(long);\nint main(void) {{\n");
    for argument in arguments {
        text += &format!("    printf(\"%ld\\n\", {ENTRY}({argument}L));\n");
    }
    text + "    return 0;\n}\n"
}

/// Splitmix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len())]
    }
}

struct Writer {
    random: Random,
    features: Features,
    units: usize,
    functions: usize,
    globals: usize,
    labels: usize,
}

/// What every file can see.
const HEADER: &str = r#"#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef unsigned long u;
typedef u function(u, u, int);
struct six { u a[6]; };
__attribute__((weak)) u missing(u);
extern u w(u), visible(u);
/* Code for executables may compare and add the host's data in place, which no linker of units can redirect. */
#ifdef __PIE__
static int *volatile of_host = &optind;
static FILE **volatile out_of_host = &stdout;
#define OPTIND (*of_host)
#define STDOUT (*out_of_host)
#else
#define OPTIND optind
#define STDOUT stdout
#endif
"#;

impl Program {
    /// The program of `seed`.
    pub fn new(seed: u64, features: Features) -> Self {
        let mut random = Random(seed);
        let units = 2 + random.below(3);
        let functions = units * (2 + random.below(3));
        let globals = 3 + random.below(4);
        let mut writer = Writer {
            random,
            features,
            units,
            functions,
            globals,
            labels: 0,
        };
        let files = (0..units).map(|unit| (format!("unit{unit}.c"), writer.unit(unit)));
        Self {
            files: files.collect(),
        }
    }
}

impl Writer {
    fn unit(&mut self, unit: usize) -> String {
        let mut text = HEADER.to_owned();
        for number in 0..self.functions {
            text += &format!("extern function f{number};\n");
        }
        for number in 0..self.globals {
            text += &format!("extern u g{number}, a{number}[16];\n");
        }
        for other in 0..self.units {
            text += &format!("extern function *const table{other}[4];\n");
            if self.features.thread_local {
                text += &format!("extern __thread u t{other};\n");
            }
        }
        self.data(&mut text, unit);
        for number in (unit..self.functions).step_by(self.units) {
            self.function(&mut text, unit, number);
        }
        if unit == 0 {
            self.entry(&mut text);
        }
        text
    }

    fn data(&mut self, text: &mut String, unit: usize) {
        for number in (unit..self.globals).step_by(self.units) {
            let value = self.random.next() >> 8;
            // One has bytes, one is zero; each array the other way round.
            let line = if value & 1 == 0 {
                format!("u g{number} = {value}u, a{number}[16];\n")
            } else {
                format!("u g{number}, a{number}[16] = {{{value}u, 1, 2, 3}};\n")
            };
            *text += &line;
        }
        let hidden = "__attribute__((visibility(\"hidden\")))";
        let words: Vec<String> = (0..4)
            .map(|word| format!("\"word {unit} {}\"", word * word))
            .collect();
        *text += &format!("static const char *names[] = {{{}}};\n", words.join(", "));
        let one = self.random.below(self.functions);
        let two = self.random.below(self.functions);
        *text += &format!(
            "{hidden} u own{unit}(u x, u y, int fuel) {{ return x * 7 + y + fuel; }}\n\
             function *const table{unit}[4] = {{f{one}, f{two}, own{unit}, f{unit}}};\n"
        );
        let global = self.random.below(self.globals);
        *text += &format!(
            "static u *const pointers[] = {{&g0, &g{global}, &a{global}[3], a0 + 15}};\n\
             static const struct six sixes = {{{{1, 2, {}, 4, 5, 6}}}};\n\
             static int order(const void *l, const void *r) {{\n    \
             u x = *(const u *)l, y = *(const u *)r;\n    return x < y ? -1 : x > y;\n}}\n\
             static u counter;\n",
            self.random.below(1000)
        );
        // Weak in every file, and the same.
        *text += "__attribute__((weak)) u w(u x) { return x * 3 + 1; }\n";
        if unit == 1 {
            *text +=
                "__attribute__((visibility(\"protected\"))) u visible(u x) { return x ^ 0x55; }\n";
        }
        if self.features.thread_local {
            *text += &format!("__thread u t{unit} = {unit};\nstatic __thread u own_t;\n");
        }
    }

    fn function(&mut self, text: &mut String, unit: usize, number: usize) {
        let _ = writeln!(text, "u f{number}(u x, u y, int fuel) {{");
        *text += "    u z = x ^ y;\n    if (fuel <= 0) return z + 1;\n";
        for _ in 0..3 + self.random.below(6) {
            let statement = self.statement(unit, number);
            let _ = writeln!(text, "    {statement}");
        }
        *text += "    return x + 3 * y + 5 * z;\n}\n";
    }

    fn expression(&mut self) -> String {
        let left = self.random.pick(&["x", "y", "z", "counter", "g0"]);
        let right = self
            .random
            .pick(&["x", "y", "z", "17", "0x123456789abcu", "(u)fuel"]);
        match self.random.below(6) {
            0 => format!("{left} / ({right} | 1)"),
            1 => format!("({left} << ({right} & 31))"),
            2 => format!("({left} >> ({right} & 31))"),
            3 => format!("({left} < {right} ? {left} : ~{right})"),
            4 => format!("{left} % ({right} | 1)"),
            _ => format!(
                "{left} {} {right}",
                self.random.pick(&["+", "-", "*", "^", "&", "|"])
            ),
        }
    }

    fn statement(&mut self, unit: usize, function: usize) -> String {
        let to = self.random.pick(&["x", "y", "z"]);
        let value = self.expression();
        let callee = self.random.below(self.functions);
        let other = self.random.below(self.units);
        let global = self.random.below(self.globals);
        let local = if self.features.thread_local { 19 } else { 17 };
        match self.random.below(local) {
            0 => format!("{to} += f{callee}({value}, z, fuel - 1);"),
            1 => format!("{to} ^= table{other}[{to} & 3](x, {value}, fuel - 2);"),
            2 => format!("g{global} += {value}; {to} += g{global};"),
            3 => format!("a{global}[{to} & 15] ^= {value}; {to} += a{global}[y & 15];"),
            4 => self.switch(to),
            5 => format!(
                "{to} = {to} * 31 + strlen(names[{to} & 3]) + (unsigned char)names[y & 3][5];"
            ),
            6 => format!(
                "{{ char b[80]; int n = snprintf(b, sizeof b, \"%s:%lx:%d:%.3f\", names[x & 3], {value}, (int)(y & 255), (double)(z & 4095) / 8); \
                 {to} += n; for (int i = 0; i < n; i++) {to} = {to} * 33 + (unsigned char)b[i]; }}"
            ),
            7 => format!(
                "{{ u v[6] = {{x, y, z, 9, {value}, 3}}; qsort(v, 6, sizeof *v, order); {to} = v[1] * 3 + v[4]; }}"
            ),
            8 => format!("{to} += (table{other}[3] == f{other}) + (table{other}[0] == f{callee});"),
            9 => format!("for (int i = 0; i < 4; i++) {to} += {value} + i;"),
            10 => format!("{to} += (u)((double)({value} & 0xffff) * 1.5 + 0.25f);"),
            11 => format!("{{ struct six s = sixes; s.a[x % 6] += y; {to} += s.a[z % 6]; }}"),
            12 => {
                format!("{{ static u calls = {function}; {to} += calls++; counter += {to} & 7; }}")
            }
            13 => format!("{to} += w({value}) + visible({to}) + own{unit}(x, y, fuel);"),
            14 => format!("if (missing) {to} += missing({to}); {to} += (u)OPTIND + (STDOUT != 0);"),
            15 => format!("*pointers[{to} & 3] += {value}; {to} += *pointers[y & 3];"),
            16 => {
                self.labels += 1;
                let label = self.labels;
                format!(
                    "{{ static const void *const labels[] = {{&&one{label}, &&two{label}}}; goto *labels[{to} & 1]; \
                     one{label}: {to} += 11; two{label}: {to} += 3; }}"
                )
            }
            17 => format!("t{other} += {value}; {to} += t{other};"),
            _ => format!("own_t += {value}; {to} ^= own_t;"),
        }
    }

    fn switch(&mut self, to: &str) -> String {
        let mut text = format!("switch ({to} % 9) {{");
        for case in 0..7 {
            let value = self.random.below(1000);
            text += &format!(" case {case}: {to} += {value}; break;");
        }
        text + &format!(" default: {to} ^= 5; }}")
    }

    fn entry(&mut self, text: &mut String) {
        let _ = writeln!(text, "long {ENTRY}(long seed) {{\n    u sum = seed;");
        for number in 0..self.functions {
            let _ = writeln!(
                text,
                "    sum = sum * 31 + f{number}(sum, (u)seed + {number}, 4);\n    printf(\"f{number} %lx %s\\n\", sum, names[sum & 3]);"
            );
        }
        for number in 0..self.globals {
            let _ = writeln!(
                text,
                "    for (int i = 0; i < 16; i++) sum = sum * 7 + a{number}[i] + g{number};"
            );
        }
        *text += "    printf(\"all %lx\\n\", sum);\n    fflush(stdout);\n    return sum & 0x7fffffffffffffff;\n}\n";
    }
}

#[cfg(test)]
mod tests {
    use super::{Features, Program};

    #[test]
    fn the_same_seed_gives_the_same_program() {
        let of = |seed| Program::new(seed, Features::default());
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(of(1).files.len() >= 2);
    }
}
