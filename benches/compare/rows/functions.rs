//! A thousand functions of CLIF, until eight workers have them: compiled once, or by each of them.

use jitcast::compiler::front::{Options, compile_bytes};
use jitcast::compiler::{CompilerOptions, UnitSource};

use super::race::{Race, tell};
use crate::common::{Serving, adds, mixes};
use crate::follow::{Means, Others};
use crate::library::bonus;
use crate::measure::{Contestant, Recorder, Taken, time_ns};
use crate::report::grouped;

const WORKERS: usize = 8;

/// The text of version `event`: the functions, and one that differs.
pub(crate) fn text(functions: usize, event: u64) -> String {
    let own = (0..functions).map(|number| mixes(number, functions));
    own.chain([adds("adds", bonus(event).into())]).collect()
}

fn compiled(text: &str) -> UnitSource {
    let file = compile_bytes("mixes.clif", text.into(), &Options::default()).unwrap();
    UnitSource::new("mixes", [file])
}

pub(crate) fn run(recorder: &mut Recorder) {
    let functions = recorder.plan.pick(200, 1000);
    let texts = [0, 1].map(|event| text(functions, event));
    let serving = Serving::with(&CompilerOptions::default());
    serving.publish(&compiled(&texts[0]));
    let means = Means::Jitcast {
        socket: serving.socket.clone(),
        others: Others::None,
        watched: false,
    };
    let mut published = 0;
    let mut ours = Race::few(&means, WORKERS, |_, _| {
        published += 1;
        serving.publish(&compiled(&texts[published % 2]));
    });
    let means = Means::CraneliftJit { functions };
    let mut theirs = Race::few(&means, WORKERS, |board, event| tell(board, event, true));
    let mut contestants: Vec<Contestant<'_>> = vec![
        Box::new(|| ours.round("jitcast, ready in 8 workers", 1)),
        Box::new(|| {
            let once = time_ns(|| compiled(&texts[0]));
            vec![Taken::warm(
                "limit: compiled once, with as many threads",
                vec![once],
            )]
        }),
    ];
    contestants.push(Box::new(|| {
        theirs.round("Cranelift JIT in each of 8 workers", 1)
    }));
    let row = format!(
        "{} functions of CLIF until 8 workers have called one",
        grouped(functions as f64)
    );
    let rounds = recorder.plan.pick(1, 3);
    recorder.row_of(rounds, ("functions", &row, "ns"), contestants);
}
