use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A publication of `version` of some units over a connection.
#[derive(Clone, Debug)]
struct Asked {
    connection: u64,
    units: Vec<u8>,
    version: u8,
}

fn asked(connection: u64, units: &[u8], version: u8) -> Asked {
    let units = units.to_vec();
    Asked {
        connection,
        units,
        version,
    }
}

impl Asked {
    fn names(&self) -> Names {
        Names {
            units: self.units.iter().map(ToString::to_string).collect(),
            symbols: HashSet::new(),
        }
    }

    fn content(&self) -> ContentHash {
        ContentHash::of(&[&[self.version][..], &self.units].concat())
    }

    fn is_ordered_with(&self, other: &Self) -> bool {
        let shares = |unit: &u8| other.units.contains(unit);
        self.connection == other.connection || self.units.iter().any(shares)
    }
}

/// Lets it in and describes it.
fn come(line: &Line, asked: &Asked) -> (Ticket, bool) {
    let ticket = line.enter(asked.connection, 1).unwrap();
    let twin = line.describe(ticket, asked.names(), Some(asked.content()));
    (ticket, twin)
}

fn is_first(line: &Line, ticket: Ticket) -> bool {
    let state = line.state.lock();
    state.is_first(state.position(ticket))
}

fn line() -> Line {
    Line::new(PublishLimits::default())
}

/// Which of those that come in this order get another one's answer.
fn twins(asked: &[Asked]) -> Vec<bool> {
    let line = line();
    asked.iter().map(|asked| come(&line, asked).1).collect()
}

#[test]
fn those_of_one_connection_or_of_one_unit_wait_and_others_do_not() {
    let line = line();
    let all = [
        asked(1, &[1], 1),
        asked(1, &[2], 1),
        asked(2, &[3], 1),
        asked(3, &[4, 1], 1),
        asked(4, &[4], 1),
    ];
    let tickets = all.each_ref().map(|asked| come(&line, asked).0);
    let first = || tickets.map(|ticket| is_first(&line, ticket));
    assert_eq!(first(), [true, false, true, false, false]);
    line.finish(tickets[0], |_| ());
    let first = [1, 2, 3, 4].map(|index| is_first(&line, tickets[index]));
    assert_eq!(first, [true, true, true, false]);
}

#[test]
fn one_that_has_not_been_read_may_be_about_anything() {
    let line = line();
    let unread = line.enter(1, 1).unwrap();
    let rollback = line.enter(2, 0).unwrap();
    line.describe(rollback, Names::default(), None);
    assert!(
        is_first(&line, rollback),
        "it is ordered by its connection only"
    );
    let other = asked(3, &[1], 1);
    let ticket = line.enter(3, 1).unwrap();
    std::thread::scope(|scope| {
        let described = scope.spawn(|| line.describe(ticket, other.names(), Some(other.content())));
        line.describe(unread, other.names(), Some(other.content()));
        assert!(described.join().unwrap(), "and turns out to be its twin");
    });
}

#[test]
fn equal_ones_that_wait_together_are_one() {
    let (old, new) = (asked(1, &[1], 1), asked(2, &[1], 2));
    let again = Asked {
        connection: 3,
        ..old.clone()
    };
    assert_eq!(
        twins(&[old.clone(), again.clone(), again.clone()]),
        [false, true, true]
    );
    // Another version came between: what was asked for last has to count.
    assert_eq!(
        twins(&[old.clone(), new.clone(), again.clone()]),
        [false; 3]
    );
    // And is one with what came after that.
    let last = Asked {
        connection: 4,
        ..old.clone()
    };
    assert_eq!(
        twins(&[old.clone(), new, again.clone(), last]),
        [false, false, false, true]
    );
    // What is ordered with neither is no matter.
    let other = asked(9, &[2], 1);
    assert_eq!(
        twins(&[old.clone(), other, again.clone()]),
        [false, false, true]
    );
    // The connection's own earlier request is.
    let before = asked(3, &[2], 1);
    assert_eq!(
        twins(&[before.clone(), old.clone(), again.clone()]),
        [false; 3]
    );
    assert_eq!(twins(&[old, before, again]), [false; 3]);
}

#[test]
fn who_comes_after_the_commit_began_is_no_twin() {
    let line = line();
    let (first, _) = come(&line, &asked(1, &[1], 1));
    line.begin(first);
    let (second, is_twin) = come(&line, &asked(2, &[1], 1));
    assert!(!is_twin);
    assert!(come(&line, &asked(3, &[1], 1)).1, "of the second");
    let mut answered = Vec::new();
    line.finish(first, |connection| answered.push(connection));
    line.finish(second, |connection| answered.push(connection));
    assert_eq!(answered, [1, 2, 3]);
}

#[test]
fn what_is_under_way_has_limits() {
    let line = Line::new(PublishLimits {
        requests: 3,
        bytes: 100,
    });
    let large = line
        .enter(1, 101)
        .expect("one alone may be as long as it likes");
    let refused = line.enter(2, 1).unwrap_err();
    assert!(
        refused.starts_with("busy: requests of 101 bytes wait already"),
        "{refused}"
    );
    line.enter(2, 0).unwrap_err();
    line.finish(large, |_| ());
    for len_bytes in [50, 50, 0] {
        line.enter(3, len_bytes).unwrap();
    }
    let refused = line.enter(4, 0).unwrap_err();
    assert!(refused.starts_with("busy: too many requests"), "{refused}");
}

#[test]
fn nobody_waits_once_the_line_is_closed() {
    let line = line();
    let (first, _) = come(&line, &asked(1, &[1], 1));
    let (second, _) = come(&line, &asked(1, &[1], 2));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| line.wait(second));
        line.close();
        waiting.join().unwrap().unwrap_err();
    });
    line.wait(first).unwrap_err();
}

proptest! {
    /// Whatever comes and is committed when it may be: of two that are ordered the first is committed first, or both at once if
    /// they ask for the same; and all are committed in the end.
    #[test]
    fn commits_are_ordered(
        all in vec((0u64..3, vec(0u8..3, 1..3), 0u8..2), 1..12),
        choices in vec(any::<u8>(), 48),
    ) {
        let all = all.into_iter().map(|(connection, mut units, version)| {
            units.sort_unstable();
            asked(connection, &units, version)
        });
        let all: Vec<_> = all.collect();
        let line = line();
        let mut committed = vec![None; all.len()];
        let mut waiting: Vec<Ticket> = Vec::new();
        let (mut coming, mut choices, mut time) = (all.iter(), choices.into_iter().cycle(), 0);
        loop {
            let choice = usize::from(choices.next().unwrap());
            let ready: Vec<_> = waiting.iter().copied().filter(|&ticket| is_first(&line, ticket)).collect();
            let comes = choice % 2 == 0 || ready.is_empty();
            if let Some(asked) = comes.then(|| coming.next()).flatten() {
                let (ticket, is_twin) = come(&line, asked);
                waiting.extend((!is_twin).then_some(ticket));
                continue;
            }
            if waiting.is_empty() && coming.len() == 0 {
                break;
            }
            if ready.is_empty() {
                prop_assert!(waiting.is_empty(), "somebody may always commit");
                continue;
            }
            let ticket = ready[choice / 2 % ready.len()];
            line.begin(ticket);
            waiting.retain(|&other| other != ticket);
            time += 1;
            let state = line.state.lock();
            let done = state.requests.iter();
            let done = done.filter(|request| request.ticket == ticket || request.stage == Stage::Twin(ticket));
            done.for_each(|request| committed[request.ticket as usize] = Some(time));
            drop(state);
            line.finish(ticket, |_| ());
        }
        for (second, later) in all.iter().enumerate() {
            for (first, earlier) in all[..second].iter().enumerate() {
                let [first, second] = [first, second].map(|index| committed[index]);
                prop_assert!(first.is_some() && second.is_some());
                if earlier.is_ordered_with(later) {
                    prop_assert!(first <= second, "{earlier:?} {later:?}");
                }
                if first == second {
                    prop_assert_eq!(earlier.content(), later.content());
                }
            }
        }
    }
}
