//! A race: a publisher makes one version after the other, and followers in other processes call them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jitcast::runtime::sys;

use crate::board::{self, Board};
use crate::follow::{Follow, Means};
use crate::measure::Taken;
use crate::process::Player;
use crate::role::Role;

/// Events between two looks at how long a round has taken; even, since versions take turns.
const BATCH: u64 = 50;

/// How long a round may take.
const ENOUGH: Duration = Duration::from_millis(500);

/// A publisher with its followers.
pub(crate) struct Race<'a> {
    board: Board,
    followers: Vec<Player>,
    asleep: bool,
    /// Makes version `event` of the function, and tells of it.
    publish: Publish<'a>,
}

type Publish<'a> = Box<dyn FnMut(&Board, u64) + 'a>;

/// What the events of a round took, ns.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// From the call that publishes until the last follower had called.
    pub(crate) from_call: Vec<f64>,
    /// From that call until the last follower noticed that something is new.
    pub(crate) until_notice: Vec<f64>,
    /// From the moment that its directory says it was published at: linked, and about to be visible.
    pub(crate) from_publication: Vec<f64>,
    /// From the return of that call; below 0 if it was called before.
    pub(crate) from_return: Vec<f64>,
    /// From when the last follower noticed that something is new.
    pub(crate) from_notice: Vec<f64>,
}

impl<'a> Race<'a> {
    /// Starts the followers, and lets them do some times what is measured: what is done once in a process is done.
    pub(crate) fn new(
        means: &Means,
        asleep: bool,
        followers: usize,
        publish: impl FnMut(&Board, u64) + 'a,
    ) -> Self {
        let mut race = Self::start(means, asleep, followers, publish);
        race.run(10);
        race
    }

    /// The same with sleeping followers, where an event takes long.
    pub(crate) fn few(
        means: &Means,
        followers: usize,
        publish: impl FnMut(&Board, u64) + 'a,
    ) -> Self {
        let mut race = Self::start(means, true, followers, publish);
        race.run(1);
        race
    }

    fn start(
        means: &Means,
        asleep: bool,
        followers: usize,
        publish: impl FnMut(&Board, u64) + 'a,
    ) -> Self {
        let board = Board::create();
        let start = |number| {
            Player::start(&Role::Follow(Follow {
                means: means.clone(),
                asleep,
                board: board.path(),
                number,
                // The publisher is on the first one.
                cpu: number + 1,
            }))
        };
        let followers = (0..followers).map(start).collect();
        Self {
            board,
            followers,
            asleep,
            publish: Box::new(publish),
        }
    }

    /// Publishes `count` versions, each when everybody has called the last; fewer, if that takes long on a machine that is busy.
    pub(crate) fn run(&mut self, count: u64) -> Events {
        let begun = Instant::now();
        let mut events = Events::default();
        let mut left = count;
        while left > 0 && (left == count || begun.elapsed() < ENOUGH) {
            let some = left.min(BATCH);
            self.batch(some, &mut events);
            left -= some;
        }
        events
    }

    fn batch(&mut self, count: u64, events: &mut Events) {
        let followers = self.followers.len();
        self.board.begin(count, followers);
        for event in 1..=count {
            self.pause();
            let start_ns = sys::monotonic_ns();
            (self.publish)(&self.board, event);
            let done_ns = sys::monotonic_ns();
            let all = (0..followers).map(|number| self.board.hear(number, event, self.asleep));
            let all: Vec<_> = all.collect();
            let last = all.iter().max_by_key(|times| times.called_ns);
            let last = last.expect("somebody follows");
            let since = |past: u64| last.called_ns as f64 - past as f64;
            events.from_call.push(since(start_ns));
            events
                .until_notice
                .push(last.noticed_ns as f64 - start_ns as f64);
            events.from_return.push(since(done_ns));
            events.from_notice.push(since(last.noticed_ns));
            let published_ns = all.iter().find_map(|times| times.published_ns);
            events.from_publication.extend(published_ns.map(since));
        }
    }

    /// Lets followers get to where they wait.
    fn pause(&self) {
        if self.asleep {
            return std::thread::sleep(Duration::from_micros(200));
        }
        let until_ns = sys::monotonic_ns() + 3000;
        while sys::monotonic_ns() < until_ns {
            std::hint::spin_loop();
        }
    }

    /// A round, from the call on.
    pub(crate) fn round(&mut self, who: &str, count: u64) -> Vec<Taken> {
        vec![Taken::warm(who, self.run(count).from_call)]
    }
}

/// Tells followers by the board's own head.
pub(crate) fn tell(board: &Board, event: u64, asleep: bool) {
    board.head().store(event, Ordering::Release);
    if asleep {
        board::wake(board.head());
    }
}
