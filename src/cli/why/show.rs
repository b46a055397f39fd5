//! The same for people.

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;

use super::workers::State;
use super::{Version, Why};

pub(super) fn show(why: &Why) {
    for version in &why.versions {
        println!("{}", described(why, version));
    }
    if why.versions.is_empty() {
        println!("{}: nothing is published under this name", why.symbol);
    }
    if why.obstacles.is_empty() {
        println!("{} can be called in every worker", why.symbol);
    }
    for obstacle in &why.obstacles {
        println!("in its way: {obstacle}");
    }
    show_workers(why);
    for referrer in &why.referrers {
        let functions = referrer.functions.join(", ");
        let functions = if functions.is_empty() {
            "its data or local code"
        } else {
            &functions
        };
        println!("referred to by: unit {}: {functions}", referrer.unit);
    }
    for need in &why.needs {
        let signature = need.signature.as_deref().unwrap_or_default();
        let through = need.through.as_ref();
        let through = through.map_or_else(String::new, |through| format!(", through {through}"));
        let whose = match &need.unit {
            Some(unit) => format!(", unit {unit}"),
            None if need.weak => ", weak".to_owned(),
            None => String::new(),
        };
        let host = if need.host { "the host's " } else { "" };
        println!("needs: {host}{}{signature}{whose}{through}", need.name);
    }
}

fn described(why: &Why, version: &Version) -> String {
    let signature = version
        .signature
        .as_deref()
        .unwrap_or(", of an unknown signature");
    let len_bytes = version.len_bytes.map(|len| format!(", {len} bytes"));
    let canary = version.canary.map(|id| format!(", canary {id}"));
    format!(
        "{}{signature}: {} of the unit {}, generation {}{}, w+{:#x}{}",
        why.symbol,
        version.kind,
        version.unit,
        version.generation,
        canary.unwrap_or_default(),
        version.offset,
        len_bytes.unwrap_or_default(),
    )
}

fn show_workers(why: &Why) {
    let mut table = Table::new();
    let header = [
        "worker", "pid", "label", "applied", "behind", "canaries", "runs", "lacks",
    ];
    table.load_preset(UTF8_BORDERS_ONLY).set_header(header);
    for worker in &why.workers {
        let mut runs = match &worker.state {
            State::Runs {
                unit,
                generation,
                changing,
            } => {
                let changing = if *changing {
                    ", older where threads are inside"
                } else {
                    ""
                };
                format!("generation {generation} of {unit}{changing}")
            }
            State::Older => "an older version".to_owned(),
            State::Behind => "nothing of it yet".to_owned(),
            State::Quarantined => "the host's fallback".to_owned(),
            State::Failed { .. } => "a trap".to_owned(),
            State::Nothing => "-".to_owned(),
        };
        if worker.unreadable.is_some() {
            runs.push_str(", as it says");
        }
        let canaries: Vec<_> = worker.canaries.iter().map(u64::to_string).collect();
        table.add_row([
            worker.number.to_string(),
            worker.pid.to_string(),
            worker.label.clone(),
            worker.applied.to_string(),
            worker.lag.to_string(),
            or_dash(canaries.join(", ")),
            runs,
            or_dash(worker.lacks.join(", ")),
        ]);
    }
    if !why.workers.is_empty() {
        println!("{table}");
    }
    for worker in &why.workers {
        if let Some(unreadable) = &worker.unreadable {
            println!("worker {} cannot be looked into: {unreadable}", worker.pid);
        }
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    text
}
