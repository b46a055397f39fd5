//! jitcast as a publisher in races.

use jitcast::compiler::{CompilerOptions, Reclaim, UnitSource};

use super::race::Race;
use crate::common::{Serving, object_unit};
use crate::follow::{Means, Others};
use crate::library::bonus;
use crate::shapes;

/// Versions of a unit that take turns: number n adds what version n has to.
pub(super) fn versions(reclaim: Reclaim, len_bytes: usize) -> [UnitSource; 2] {
    [0, 1].map(|number| UnitSource {
        reclaim,
        signatures: vec![("adds".to_owned(), "(i64) -> i64".parse().unwrap())],
        ..object_unit("adds", shapes::adds(bonus(number), len_bytes))
    })
}

/// A compiler, and how a version is published by it.
pub(super) struct Publisher {
    pub(super) serving: Serving,
    versions: [UnitSource; 2],
}

impl Publisher {
    pub(super) fn new(options: &CompilerOptions, versions: [UnitSource; 2]) -> Self {
        let serving = Serving::with(options);
        serving.publish(&versions[0]);
        Self { serving, versions }
    }

    /// Publishes version `number`.
    pub(super) fn publish(&self, number: u64) {
        self.serving.publish(&self.versions[(number % 2) as usize]);
    }

    pub(super) fn race(
        &self,
        others: Others,
        watched: bool,
        asleep: bool,
        followers: usize,
    ) -> Race<'_> {
        let means = Means::Jitcast {
            socket: self.serving.socket.clone(),
            others,
            watched,
        };
        let mut published = 0;
        Race::new(&means, asleep, followers, move |_, _| {
            published += 1;
            self.publish(published);
        })
    }
}
