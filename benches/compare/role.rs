//! The roles that this program plays when it starts itself anew.

use serde::{Deserialize, Serialize};

use crate::follow::{self, Follow};
use crate::rows::attach::{self, Late};
use crate::rows::many::{self, Loads};
use crate::rows::memory::{self, Resident};
use crate::rows::{publish, swaps};

/// What a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Runs what is published, and tells when it did.
    Follow(Follow),
    /// Has code in memory.
    Resident {
        resident: Resident,
        functions: usize,
    },
    /// Attaches to what is there.
    Late(Late),
    /// Loads one thing after the other.
    Load { loads: Loads, places: Vec<u64> },
    /// Sleeps as a worker.
    Sleep { socket: String, waits: bool },
    /// Calls what is published, all the time.
    Call { socket: String, cpu: usize },
}

/// Plays it to its end. The process ends with the one that started it.
pub(crate) fn play(role: Role) {
    let signal = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(signal).unwrap();
    crate::process::unpin();
    match role {
        Role::Follow(follow) => follow::play(&follow),
        Role::Resident {
            resident,
            functions,
        } => memory::play(&resident, functions),
        Role::Late(late) => attach::play(&late),
        Role::Load { loads, places } => many::play(&loads, &places),
        Role::Sleep { socket, waits } => publish::play(&socket, waits),
        Role::Call { socket, cpu } => swaps::play(&socket, cpu),
    }
}
