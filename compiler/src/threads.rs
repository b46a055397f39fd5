//! Threads that compile and read at once: no more than there are processors, whoever wants some.
//!
//! Invariant: what comes out does not depend on how many there are. Results are in the order of what they were made
//! from, and of several errors the first one counts, as if one thread had done it all.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::{Builder, available_parallelism};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

/// How many threads work on one batch at once. Clones have them in common: what one of them uses the others
/// lack, so many batches together have no more than one does, beside the thread of each.
///
/// ```
/// use jitcast_compiler::Threads;
/// use jitcast_compiler::front::Options;
///
/// let threads = Threads::new(2);
/// let options = Options { threads: threads.clone(), ..Options::default() };
/// assert_eq!(options.threads.limit(), 2);
/// ```
#[derive(Clone, Debug)]
pub struct Threads(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    limit: usize,
    /// Those at work beside the threads that asked for them.
    helpers: AtomicUsize,
}

impl Threads {
    /// At the most `limit`, the calling thread among them; 0 counts as 1.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Pool {
            limit: limit.max(1),
            helpers: AtomicUsize::new(0),
        }))
    }

    /// The most that there are at once.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// What `work` makes of each item, in their order, or the error of the first that has one. As many threads help as
    /// `worth` says that it is worth while, if they are free.
    pub(crate) fn map<T: Send, R: Send, E: Send>(
        &self,
        worth: usize,
        items: Vec<T>,
        work: impl Fn(usize, T) -> Result<R, E> + Sync,
    ) -> Result<Vec<R>, E> {
        let helpers = self.helpers(worth.min(items.len()).saturating_sub(1));
        if helpers.0 == 0 {
            let items = items.into_iter().enumerate();
            return items.map(|(index, item)| work(index, item)).collect();
        }
        let count = items.len();
        let items = Mutex::new(items.into_iter().enumerate());
        let failed = AtomicBool::new(false);
        // Items are taken in their order. So when one fails, those before it have been taken, and are finished.
        let run = || {
            let mut done = Vec::new();
            while !failed.load(Ordering::Relaxed) {
                let Some((index, item)) = items.lock().next() else {
                    break;
                };
                let result = work(index, item);
                if result.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                done.push((index, result));
            }
            done
        };
        let mut done = Vec::with_capacity(count);
        std::thread::scope(|scope| {
            let start = |_| {
                let thread = Builder::new().name("helper".into());
                // With fewer threads it takes longer.
                thread.spawn_scoped(scope, run).ok()
            };
            let threads: Vec<_> = (0..helpers.0).filter_map(start).collect();
            done.extend(run());
            for thread in threads {
                match thread.join() {
                    Ok(results) => done.extend(results),
                    // As if it had happened in this thread.
                    Err(panic) => resume_unwind(panic),
                }
            }
        });
        done.sort_unstable_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }

    /// Takes as many helpers as are free, at the most `wanted`.
    fn helpers(&self, wanted: usize) -> Helpers<'_> {
        let (helpers, most) = (&self.0.helpers, self.0.limit - 1);
        // The number guards nothing but itself.
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let mut taken = 0;
        let _ = helpers.fetch_update(success, failure, |busy| {
            taken = wanted.min(most - busy);
            Some(busy + taken)
        });
        Helpers(taken, helpers)
    }
}

impl Default for Threads {
    /// As many as there are processors, for the whole process.
    fn default() -> Self {
        static MACHINE: LazyLock<Threads> =
            LazyLock::new(|| Threads::new(available_parallelism().map_or(1, usize::from)));
        MACHINE.clone()
    }
}

impl PartialEq for Threads {
    fn eq(&self, other: &Self) -> bool {
        self.limit() == other.limit()
    }
}

impl Eq for Threads {}

/// Helpers that are taken, until they are given back.
struct Helpers<'a>(usize, &'a AtomicUsize);

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// How many may do something at once; the others wait, those who came first the shortest.
#[derive(Debug)]
pub(crate) struct Permits(Sender<()>, Receiver<()>);

impl Permits {
    pub(crate) fn new(count: usize) -> Self {
        let (taken, given) = bounded(count);
        Self(taken, given)
    }

    /// Waits for one, which goes back when it is dropped.
    pub(crate) fn take(&self) -> Permit<'_> {
        // Both ends are here, so it is connected.
        let _ = self.0.send(());
        Permit(&self.1)
    }
}

/// What [`Permits::take`] gave.
#[derive(Debug)]
pub(crate) struct Permit<'a>(&'a Receiver<()>);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;

    use super::*;

    /// Each of two items waits until the other is being worked on: with one thread this would not end.
    #[test]
    fn several_items_are_worked_on_at_once() {
        let both = Barrier::new(2);
        let work = |_, item: u32| {
            both.wait();
            Ok::<_, ()>(item + 1)
        };
        assert_eq!(Threads::new(2).map(2, vec![1, 2], work), Ok(vec![2, 3]));
    }

    #[test]
    fn results_are_in_order_and_the_first_error_counts() {
        for limit in 1..5 {
            let threads = Threads::new(limit);
            let doubled = threads.map(9, (0..100).collect(), |index, item: usize| {
                assert_eq!(index, item);
                Ok::<_, usize>(2 * item)
            });
            assert_eq!(doubled, Ok((0..100).map(|item| 2 * item).collect()));
            for bad in [0, 1, 50, 98] {
                let done = threads.map(9, (0..100).collect(), |_, item: usize| {
                    if item >= bad { Err(item) } else { Ok(item) }
                });
                assert_eq!(done, Err(bad));
            }
        }
    }

    #[test]
    fn a_panic_of_a_helper_is_the_callers_and_helpers_come_back() {
        let threads = Threads::new(3);
        for _ in 0..3 {
            let run = || {
                threads.map(9, (0..9).collect(), |_, _: u32| -> Result<(), ()> {
                    panic!("as asked for")
                })
            };
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"as asked for"));
        }
        assert_eq!(threads.helpers(9).0, 2);
    }

    #[test]
    fn nobody_gets_helpers_that_others_have() {
        let threads = Threads::new(4);
        let some = threads.helpers(2);
        let rest = threads.clone();
        let rest = rest.helpers(9);
        assert_eq!((some.0, rest.0, threads.helpers(1).0), (2, 1, 0));
        drop(some);
        assert_eq!(threads.helpers(9).0, 2);
    }
}
