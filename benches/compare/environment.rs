//! What the figures depend on besides the program.

use std::fmt;
use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::peers;

/// Facts of the machine, in the order in which they are shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) facts: Vec<(String, String)>,
}

/// Asks the machine.
pub(crate) fn capture() -> Environment {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let is_virtual = cpuinfo.contains(" hypervisor");
    let processor = format!(
        "{}, {} of them{}",
        model.map_or("unknown", |(_, name)| name),
        crate::process::cpus().len(),
        if is_virtual {
            ", in a virtual machine"
        } else {
            ""
        },
    );
    let faults = if cfg!(feature = "seeded-faults") {
        "compiled in: every figure is slower than it has to be"
    } else {
        "left out"
    };
    let facts = [
        ("processor", processor),
        ("kernel", file("/proc/sys/kernel/osrelease")),
        (
            "date",
            first_line(Command::new("date").args(["-u", "+%F %T UTC"])),
        ),
        (
            "huge pages",
            file("/sys/kernel/mm/transparent_hugepage/enabled"),
        ),
        (
            "governor",
            file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        ),
        ("mitigations", mitigations()),
        ("load average", file("/proc/loadavg")),
        ("rustc", first_line(Command::new("rustc").arg("-V"))),
        ("cc", first_line(Command::new("cc").arg("--version"))),
        ("ld", first_line(Command::new("ld").arg("--version"))),
        (
            "ld.lld",
            first_line(Command::new("ld.lld").arg("--version")),
        ),
        ("llvm-jitlink", jitlinks()),
        ("seeded faults", faults.to_owned()),
    ];
    Environment {
        facts: facts.map(|(what, is)| (what.to_owned(), is)).into(),
    }
}

fn file(path: &str) -> String {
    fs::read_to_string(path).map_or("none".to_owned(), |text| text.trim().to_owned())
}

fn first_line(command: &mut Command) -> String {
    let output = command
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&output);
    text.lines().next().unwrap_or("none").trim().to_owned()
}

fn jitlinks() -> String {
    let version = |jitlink: &peers::Jitlink| first_line(jitlink.command().arg("--version"));
    let versions: Vec<_> = peers::jitlinks().iter().map(version).collect();
    match versions.is_empty() {
        true => "none".to_owned(),
        false => versions.join(", "),
    }
}

/// What the kernel does against faults of the processor: those alone that cost something.
fn mitigations() -> String {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return "unknown".to_owned();
    };
    let mut found: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = text.trim();
            (text != "Not affected").then(|| format!("{name}: {text}"))
        })
        .collect();
    found.sort();
    found.join("; ")
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, is) in &self.facts {
            writeln!(f, "{what:<14} {is}")?;
        }
        Ok(())
    }
}
