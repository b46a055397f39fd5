//! Attaching to a segment, which binds everything that is published, and detaching.
#![allow(
    missing_docs,
    reason = "criterion's macros write undocumented functions"
)]

mod common;

use common::{Serving, generated_object, object_unit};
use criterion::{Criterion, criterion_group, criterion_main};

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attach");
    for functions in [10, 10_000] {
        let serving = Serving::start();
        serving.publish(&object_unit("many", generated_object(functions)));
        group.bench_function(format!("{functions}_functions"), |bencher| {
            bencher.iter(|| serving.attach());
        });
    }
    group.finish();
}

criterion_group!(attach_benches, benches);
criterion_main!(attach_benches);
