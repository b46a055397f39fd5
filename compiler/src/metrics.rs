//! What the compiler process counts, in the form that Prometheus reads (OpenMetrics' text).
//!
//! Invariant: nobody waits for who reads it. Counters are added to where something has taken a while anyway; numbers of the state
//! are taken under its lock only if that is free soon, else they are those of the last time. What workers count is their own word:
//! it is added with saturation. Names that come from outside are escaped.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use jitcast_runtime::geometry::Area;
use jitcast_runtime::tally::{BUCKETS, Tally, bucket_limit_ns};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::compiler::Compiler;

/// Labels of a metric: names and values, escaped.
type Labels = Vec<(&'static str, String)>;

/// The label of what something came to, of which there are few.
type Outcome = [(&'static str, &'static str); 1];

/// How long the state's lock is waited for.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is counted as it happens.
#[derive(Debug)]
pub struct Metrics {
    /// Reading, resolving, placing and committing a publication, without the time that it waited for others.
    link: Histogram,
    /// The same with that time.
    publish: Histogram,
    publications: Family<Outcome, Counter>,
    request: Histogram,
    requests: Family<Outcome, Counter>,
    renewals: Counter,
    /// Numbers of the state, as they were last.
    state: Mutex<StateMetrics>,
}

/// Numbers of the state.
#[derive(Debug, Default)]
struct StateMetrics {
    generation: i64,
    units: i64,
    symbols: i64,
    kept_bytes: i64,
    backed_bytes: i64,
    older_bytes: i64,
    retired_bytes: i64,
    stragglers: i64,
    /// Used, free, and the longest free range of each area.
    areas: [[i64; 3]; Area::COUNT],
}

impl Default for Metrics {
    fn default() -> Self {
        let times = || Histogram::new(exponential_buckets(1e-5, 4.0, 12));
        Self {
            link: times(),
            publish: times(),
            publications: Family::default(),
            request: times(),
            requests: Family::default(),
            renewals: Counter::default(),
            state: Mutex::default(),
        }
    }
}

impl Metrics {
    /// A publication took so long.
    pub(crate) fn published(&self, linking: Duration, all: Duration, is_done: bool) {
        self.link.observe(linking.as_secs_f64());
        self.publish.observe(all.as_secs_f64());
        count(&self.publications, if is_done { "done" } else { "refused" });
    }

    /// A publication was refused before it had its turn.
    pub(crate) fn refused(&self) {
        count(&self.publications, "refused");
    }

    /// A worker's request came to this.
    pub(crate) fn asked(&self, outcome: &'static str) {
        count(&self.requests, outcome);
    }

    /// A request took so long, from when a child was free for it.
    pub(crate) fn answered(&self, after: Duration) {
        self.request.observe(after.as_secs_f64());
    }

    /// The segment goes on in another object.
    pub(crate) fn renewed(&self) {
        self.renewals.inc();
    }
}

fn count(family: &Family<Outcome, Counter>, result: &'static str) {
    family.get_or_create(&[("result", result)]).inc();
}

/// A histogram that workers have filled.
#[derive(Debug)]
struct Applied(Tally);

impl Collector for Applied {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "From publications to when workers had applied them";
        let name = "jitcast_publish_to_applied_seconds";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        // All of them together stay below what can be counted, whatever workers say.
        let counts = self.0.latency.map(|count| count.min(u64::MAX / 64));
        let limit = |index| match index {
            last if last == BUCKETS - 1 => f64::MAX,
            index => bucket_limit_ns(index) as f64 / 1e9,
        };
        let buckets = counts.iter().enumerate();
        let buckets: Vec<_> = buckets
            .map(|(index, count)| (limit(index), *count))
            .collect();
        let sum = self.0.applied_ns as f64 / 1e9;
        metric.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }
}

impl Compiler {
    /// All metrics, as text. It waits for nobody for long.
    ///
    /// ```
    /// # use jitcast_compiler::{Compiler, CompilerOptions};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let compiler = Compiler::create(&CompilerOptions::default())?;
    /// assert!(compiler.metrics_text().contains("\njitcast_units 0\n"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn metrics_text(&self) -> String {
        let mut registry = Registry::default();
        self.register_counted(&mut registry);
        self.register_state(&mut registry);
        self.register_workers(&mut registry);
        let mut text = String::new();
        // Nothing fails in writing to a string.
        let _ = encode(&mut text, &registry);
        text
    }

    fn register_counted(&self, registry: &mut Registry) {
        let metrics = &self.metrics;
        let mut time = |name, help: &str, histogram: &Histogram| {
            registry.register(name, help, histogram.clone());
        };
        let help =
            "Reading, resolving, placing and committing publications, without waiting for others";
        time("jitcast_link_seconds", help, &metrics.link);
        let help = "Publications, from when they were read to when they were visible";
        time("jitcast_publish_seconds", help, &metrics.publish);
        let help = "Requests of workers, from when a child was free for them to what came of them";
        time("jitcast_request_seconds", help, &metrics.request);
        let mut family = |name, help: &str, family: &Family<Outcome, Counter>| {
            registry.register(name, help, family.clone());
        };
        family(
            "jitcast_publications",
            "Publications",
            &metrics.publications,
        );
        family("jitcast_requests", "Requests of workers", &metrics.requests);
        let renewals = metrics.renewals.clone();
        registry.register("jitcast_renewals", "Renewals of the segment", renewals);
        let count = self.incidents.lock().crash_count();
        let crashes: ConstCounter = ConstCounter::new(count);
        let help = "Workers that died in published code, and said so";
        registry.register("jitcast_worker_crashes", help, crashes);
    }

    /// What the state says, or said last.
    fn register_state(&self, registry: &mut Registry) {
        let mut last = self.metrics.state.lock();
        if let Some(mut state) = self.state.try_lock_for(PATIENCE) {
            let older_bytes = self.older_bytes(&mut state);
            let (catalog, heap) = (&state.catalog, &state.heap);
            let kept = catalog.kept.iter().map(|kept| kept.len_bytes);
            *last = StateMetrics {
                generation: gauge(state.generation()),
                units: gauge(catalog.units.len() as u64),
                symbols: gauge(catalog.symbols.len() as u64),
                kept_bytes: gauge(kept.sum()),
                backed_bytes: gauge(heap.backed_bytes()),
                older_bytes: gauge(older_bytes),
                retired_bytes: gauge(heap.retired_bytes()),
                stragglers: gauge(self.stragglers(&state).len() as u64),
                areas: Area::ALL.map(|area| {
                    let free = [heap.free_bytes(area), heap.largest_free_bytes(area)];
                    [heap.used_bytes(area), free[0], free[1]].map(gauge)
                }),
            };
        }
        let mut one = |name, help: &str, value| {
            let value: ConstGauge<i64> = ConstGauge::new(value);
            registry.register(name, help, value);
        };
        one(
            "jitcast_generation",
            "The newest generation",
            last.generation,
        );
        one("jitcast_units", "Published units", last.units);
        one("jitcast_symbols", "Published names", last.symbols);
        one(
            "jitcast_shared_bytes",
            "What the shared areas take of the system's memory",
            last.backed_bytes,
        );
        one(
            "jitcast_older_bytes",
            "What objects from before renewals take that workers map still",
            last.older_bytes,
        );
        one(
            "jitcast_retired_bytes",
            "What is retired and not free yet",
            last.retired_bytes,
        );
        one(
            "jitcast_kept_bytes",
            "What replaced and removed units keep",
            last.kept_bytes,
        );
        one(
            "jitcast_stragglers",
            "Threads that hold retired memory back",
            last.stragglers,
        );
        let states = ["used", "free", "largest_free"];
        let areas: Family<Labels, Gauge<i64, AtomicI64>> = Family::default();
        for (area, values) in Area::ALL.into_iter().zip(last.areas) {
            for (state, value) in states.into_iter().zip(values) {
                let labels = vec![
                    ("area", area.name().to_owned()),
                    ("state", state.to_owned()),
                ];
                areas.get_or_create(&labels).set(value);
            }
        }
        registry.register("jitcast_area_bytes", "How full the areas are", areas);
    }

    fn register_workers(&self, registry: &mut Registry) {
        let newest = self.metrics.state.lock().generation.unsigned_abs();
        let workers = self.workers.lock();
        let (mut tally, lag) = workers.tally(newest);
        let attached = workers.entries.iter().filter(|entry| !entry.spare).count();
        drop(workers);
        let incidents = self.incidents.lock();
        tally.add(&incidents.gone());
        let crashes: Family<Labels, Counter<u64, AtomicU64>> = Family::default();
        for crash in incidents.crashes() {
            let generation = crash.generation.to_string();
            let labels = vec![("unit", escaped(&crash.unit)), ("generation", generation)];
            crashes.get_or_create(&labels).inc_by(crash.count);
        }
        drop(incidents);
        let help = "Workers that died in published code, by unit and generation, as far as they are remembered";
        registry.register("jitcast_unit_crashes", help, crashes);
        let attached: ConstGauge<i64> = ConstGauge::new(gauge(attached as u64));
        registry.register("jitcast_workers", "Workers that are attached", attached);
        let lag: ConstGauge<i64> = ConstGauge::new(gauge(lag));
        let help = "How many generations the worker that is furthest behind has not applied";
        registry.register("jitcast_worker_lag_generations", help, lag);
        let entered: ConstCounter = ConstCounter::new(tally.entered);
        let help = "Outermost guards that workers have entered, in steps of 65536 for each thread";
        registry.register("jitcast_guards_entered", help, entered);
        registry.register_collector(Box::new(Applied(tally)));
    }
}

/// A number that cannot be represented is as good as the largest one that can.
fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A label's value, as the text form wants it.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_say_makes_nothing_overflow() {
        let tally = Tally {
            entered: u64::MAX,
            applied_ns: u64::MAX,
            latency: [u64::MAX; BUCKETS],
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Applied(tally)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("_bucket{le=\"+Inf\"}"), "{text}");
    }

    #[test]
    fn hostile_names_stay_inside_their_quotes() {
        assert_eq!(escaped("a\"} 1\n\\"), "a\\\"} 1\\n\\\\");
    }
}
