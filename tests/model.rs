//! A state-space model of publishing, renewing, crashing and starting again, with two workers: every order of the steps below,
//! as the compiler process is killed between any two of them, and the power fails.
//!
//! What it takes as one step each (entering, applying, looking at pins) is modelled finer, under a memory model, in
//! `runtime/tests/loom.rs`. Each rule that is left out has to be noticed.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// Places for text in a segment: each publication needs one, and retires the one before.
const PLACES: usize = 3;

/// Publications, at the most.
const LAST: u8 = 4;

/// Generations that are reserved at once.
const CHUNK: u8 = 2;

/// Segments at the most that come from renewals.
const RENEWALS: usize = 1;

/// A rule that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// A publication is written down before it is visible.
    WriteAhead,
    /// It is durable before it is acknowledged.
    SyncBeforeAck,
    /// Numbers are reserved, durably, before they are used.
    Reserve,
    /// Memory is reused only if no thread is inside at an older generation.
    LookAtPins,
    /// A worker whose thread is inside at a generation before the floor does not map the new segment yet.
    Floor,
    /// A worker says which segment its pins hold before it looks at the floor.
    SayFirst,
}

/// How far a publication is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    Written,
    Visible,
    Durable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Compiler {
    segment: usize,
    published: u8,
    phase: Phase,
    /// The publication that is under way, and where its text lies.
    next: (u8, usize),
    /// Places that wait for pins, with the generation that retired them.
    retired: Vec<(usize, u8)>,
    free: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Segment {
    head: u8,
    floor: u8,
    /// The generation whose code lies at a place.
    text: [u8; PLACES],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Worker {
    segment: usize,
    /// The generation that its thread is inside at; 0: it is not.
    inside: u8,
    /// The segment that its pins hold.
    held: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// What is written down: generations and places, and how much of it is durable.
    log: Vec<(u8, usize)>,
    synced: usize,
    reserved: u8,
    acknowledged: u8,
    compiler: Option<Compiler>,
    /// How many compiler processes there have been.
    starts: u8,
    renewals: usize,
    segments: Vec<Segment>,
    workers: [Worker; 2],
    power_failed: bool,
    /// In which compiler process a number was used first; and whether one was used again.
    used: [u8; 16],
    used_twice: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write,
    Show,
    Sync,
    Acknowledge,
    Reclaim,
    Kill,
    PowerFails { survive: usize },
    Start,
    Enter(usize),
    Leave(usize),
    Renew,
    Say(usize),
    Map(usize),
}

struct Publishing {
    without: Option<Rule>,
}

impl Publishing {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// The number of the next publication.
    fn next(&self, state: &mut State, published: u8, first: u8) -> u8 {
        let next = (published + 1).max(first);
        if self.keeps(Rule::Reserve) && next >= state.reserved {
            state.reserved = next + CHUNK;
        }
        next
    }
}

/// The place of a generation's text.
fn place(log: &[(u8, usize)], generation: u8) -> Option<usize> {
    log.iter()
        .rev()
        .find(|(known, _)| *known == generation)
        .map(|(_, place)| *place)
}

impl Model for Publishing {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let worker = Worker {
            segment: 0,
            inside: 0,
            held: 0,
        };
        let mut segment = Segment {
            head: 1,
            floor: 0,
            text: [0; PLACES],
        };
        segment.text[0] = 1;
        let mut used = [0; 16];
        used[1] = 1;
        let compiler = Compiler {
            segment: 0,
            published: 1,
            phase: Phase::Idle,
            next: (0, 0),
            retired: Vec::new(),
            free: vec![1, 2],
        };
        vec![State {
            log: vec![(1, 0)],
            synced: 1,
            reserved: 2,
            acknowledged: 1,
            compiler: Some(compiler),
            starts: 1,
            renewals: 0,
            segments: vec![segment],
            workers: [worker.clone(), worker],
            power_failed: false,
            used,
            used_twice: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        match &state.compiler {
            Some(compiler) => {
                match compiler.phase {
                    Phase::Idle if compiler.published < LAST && !compiler.free.is_empty() => {
                        steps.push(Step::Write)
                    }
                    Phase::Idle => {}
                    Phase::Written => steps.push(Step::Show),
                    Phase::Visible => steps.push(Step::Sync),
                    Phase::Durable => steps.push(Step::Acknowledge),
                }
                if compiler.phase == Phase::Idle && state.renewals < RENEWALS && state.starts == 1 {
                    steps.push(Step::Renew);
                }
                if !compiler.retired.is_empty() {
                    steps.push(Step::Reclaim);
                }
                if state.starts < 3 {
                    steps.push(Step::Kill);
                }
            }
            None => steps.push(Step::Start),
        }
        if !state.power_failed {
            steps.extend(
                (state.synced..=state.log.len()).map(|survive| Step::PowerFails { survive }),
            );
        }
        for (index, worker) in state.workers.iter().enumerate() {
            steps.push(if worker.inside == 0 {
                Step::Enter(index)
            } else {
                Step::Leave(index)
            });
            if let Some(compiler) = &state.compiler
                && (worker.segment, worker.held) != (compiler.segment, compiler.segment)
            {
                let says = worker.held == compiler.segment;
                let maps = worker.segment == compiler.segment;
                let first = if self.keeps(Rule::SayFirst) {
                    says
                } else {
                    !maps
                };
                steps.push(if first {
                    Step::Map(index)
                } else {
                    Step::Say(index)
                });
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        let mut compiler = state.compiler.take();
        match step {
            Step::Write => {
                let compiler = compiler.as_mut()?;
                // After a restart, numbers begin where nobody can have used any.
                let first = if state.starts > 1 {
                    state.used_until(self)
                } else {
                    0
                };
                let generation = self.next(&mut state, compiler.published, first);
                let place = compiler.free.remove(0);
                compiler.next = (generation, place);
                state.segments[compiler.segment].text[place] = generation;
                if self.keeps(Rule::WriteAhead) {
                    state.log.push(compiler.next);
                }
                compiler.phase = Phase::Written;
            }
            Step::Show => {
                let compiler = compiler.as_mut()?;
                let (generation, _) = compiler.next;
                let first = &mut state.used[usize::from(generation)];
                state.used_twice |= *first != 0;
                *first = state.starts;
                let old = place(&state.log, compiler.published);
                compiler
                    .retired
                    .extend(old.map(|place| (place, generation)));
                compiler.published = generation;
                state.segments[compiler.segment].head = generation;
                compiler.phase = Phase::Visible;
            }
            Step::Sync => {
                let compiler = compiler.as_mut()?;
                if !self.keeps(Rule::WriteAhead) {
                    state.log.push(compiler.next);
                }
                if self.keeps(Rule::SyncBeforeAck) {
                    state.synced = state.log.len();
                }
                compiler.phase = Phase::Durable;
            }
            Step::Acknowledge => {
                let compiler = compiler.as_mut()?;
                state.acknowledged = compiler.published;
                compiler.phase = Phase::Idle;
            }
            Step::Reclaim => {
                let compiler = compiler.as_mut()?;
                let known = state
                    .workers
                    .iter()
                    .filter(|worker| worker.held == compiler.segment);
                let pins = known.map(|worker| worker.inside).filter(|pin| *pin != 0);
                let oldest = pins
                    .min()
                    .filter(|_| self.keeps(Rule::LookAtPins))
                    .unwrap_or(u8::MAX);
                let floor = &mut state.segments[compiler.segment].floor;
                *floor = (*floor).max(oldest.min(compiler.published));
                let free = |(_, retired): &(usize, u8)| *retired <= oldest;
                compiler.free.extend(
                    compiler
                        .retired
                        .iter()
                        .filter(|place| free(place))
                        .map(|(place, _)| *place),
                );
                compiler.retired.retain(|place| !free(place));
            }
            Step::Kill => compiler = None,
            Step::PowerFails { survive } => {
                compiler = None;
                state.power_failed = true;
                state.log.truncate(survive);
                // Nobody survives it; workers attach afresh.
                state.segments.clear();
                for worker in &mut state.workers {
                    *worker = Worker {
                        segment: usize::MAX,
                        inside: 0,
                        held: usize::MAX,
                    };
                }
            }
            Step::Start => {
                state.starts += 1;
                let mut text = [0; PLACES];
                state
                    .log
                    .iter()
                    .for_each(|(generation, place)| text[*place] = *generation);
                let (published, place) = *state.log.last()?;
                state.segments.push(Segment {
                    head: published,
                    floor: published,
                    text,
                });
                compiler = Some(Compiler {
                    segment: state.segments.len() - 1,
                    published,
                    phase: Phase::Idle,
                    next: (0, 0),
                    retired: Vec::new(),
                    free: (0..PLACES).filter(|other| *other != place).collect(),
                });
            }
            Step::Enter(index) => {
                let worker = &mut state.workers[index];
                worker.inside = state.segments.get(worker.segment)?.head;
            }
            Step::Leave(index) => state.workers[index].inside = 0,
            Step::Renew => {
                let compiler = compiler.as_mut()?;
                let place = place(&state.log, compiler.published)?;
                let mut text = [0; PLACES];
                text[place] = compiler.published;
                state.segments.push(Segment {
                    head: compiler.published,
                    floor: compiler.published,
                    text,
                });
                state.renewals += 1;
                compiler.segment = state.segments.len() - 1;
                compiler.retired.clear();
                compiler.free = (0..PLACES).filter(|other| *other != place).collect();
            }
            Step::Say(index) => state.workers[index].held = compiler.as_ref()?.segment,
            Step::Map(index) => {
                let compiler = compiler.as_ref()?;
                let worker = &mut state.workers[index];
                let floor = state.segments[compiler.segment].floor;
                if worker.inside != 0 && worker.inside < floor && self.keeps(Rule::Floor) {
                    // It holds what it has, and tries again.
                    worker.held = worker.segment;
                } else {
                    worker.segment = compiler.segment;
                }
            }
        }
        state.compiler = compiler;
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "a thread that is inside runs its generation's code",
                |_, state: &State| {
                    state.workers.iter().all(|worker| {
                        let segment = state.segments.get(worker.segment);
                        worker.inside == 0
                            || segment.is_some_and(|segment| segment.text.contains(&worker.inside))
                    })
                },
            ),
            Property::always(
                "what was acknowledged is written down",
                |_, state: &State| place(&state.log, state.acknowledged).is_some(),
            ),
            Property::always("what was visible outlives a kill", |_, state: &State| {
                let shown = state.segments.iter().map(|segment| segment.head);
                shown
                    .into_iter()
                    .all(|head| state.power_failed || place(&state.log, head).is_some())
            }),
            Property::always("no number is used twice", |_, state: &State| {
                !state.used_twice
            }),
            Property::sometimes(
                "both workers go on with the third compiler process",
                |_, state: &State| {
                    let newest = state.segments.len().wrapping_sub(1);
                    state.starts == 3
                        && !state.power_failed
                        && state
                            .workers
                            .iter()
                            .all(|worker| worker.segment == newest && worker.inside == LAST)
                },
            ),
            Property::sometimes(
                "one stays with what was before a renewal while all is published",
                |_, state: &State| {
                    let [first, second] = &state.workers;
                    state.starts == 1
                        && (first.inside, first.segment) == (1, 0)
                        && (second.inside, second.segment) == (LAST, 1)
                },
            ),
            Property::sometimes(
                "one stays with a dead one's segment while the other goes on",
                |_, state: &State| {
                    let [first, second] = &state.workers;
                    first.inside == 1
                        && first.segment == 0
                        && second.segment == 1
                        && second.inside > 2
                },
            ),
        ]
    }
}

impl State {
    /// The first number that nobody can have used: what was reserved durably is as good as used.
    fn used_until(&self, model: &Publishing) -> u8 {
        if model.keeps(Rule::Reserve) && self.compiler_began_at_reservation() {
            self.reserved
        } else {
            0
        }
    }

    /// Whether this compiler process has used no number yet.
    fn compiler_began_at_reservation(&self) -> bool {
        !self.used.contains(&self.starts)
    }
}

fn check(without: Option<Rule>, finish: HasDiscoveries) -> impl Checker<Publishing> {
    Publishing { without }
        .checker()
        .threads(2)
        .finish_when(finish)
        .spawn_bfs()
        .join()
}

#[test]
fn publications_survive_whoever_dies() {
    let checker = check(None, HasDiscoveries::All);
    println!(
        "{} states, {} of them different, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

#[test]
fn each_rule_that_is_left_out_is_noticed() {
    let rules = [
        (Rule::WriteAhead, "what was visible outlives a kill"),
        (Rule::SyncBeforeAck, "what was acknowledged is written down"),
        (Rule::Reserve, "no number is used twice"),
        (
            Rule::LookAtPins,
            "a thread that is inside runs its generation's code",
        ),
        (
            Rule::Floor,
            "a thread that is inside runs its generation's code",
        ),
        (
            Rule::SayFirst,
            "a thread that is inside runs its generation's code",
        ),
    ];
    for (rule, property) in rules {
        let checker = check(Some(rule), HasDiscoveries::AnyFailures);
        assert!(
            checker.discovery(property).is_some(),
            "{rule:?} is missed by nobody"
        );
    }
}
