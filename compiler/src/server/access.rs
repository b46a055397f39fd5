//! Who may attach, who may ask for units, and who may publish: three rights.

use std::collections::BTreeSet;

use super::line::PublishLimits;
use crate::requests::RequestOptions;

/// Users and groups that have a right.
///
/// ```
/// use jitcast_compiler::Access;
///
/// let mut access = Access::nobody();
/// access.allow_uid(33).allow_gid(100);
/// assert!(access.allows(33, 33) && access.allows(1000, 100) && !access.allows(1000, 1000));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
}

impl Access {
    /// The user that the compiler process runs as, and nobody else.
    pub fn same_user() -> Self {
        Self {
            uids: BTreeSet::from([rustix::process::geteuid().as_raw()]),
            gids: BTreeSet::new(),
        }
    }

    /// Nobody.
    pub fn nobody() -> Self {
        Self {
            uids: BTreeSet::new(),
            gids: BTreeSet::new(),
        }
    }

    /// Adds a user.
    pub fn allow_uid(&mut self, uid: u32) -> &mut Self {
        self.uids.insert(uid);
        self
    }

    /// Adds a group: processes whose effective group it is.
    pub fn allow_gid(&mut self, gid: u32) -> &mut Self {
        self.gids.insert(gid);
        self
    }

    /// Whether a peer with these effective ids has the right.
    pub fn allows(&self, uid: u32, gid: u32) -> bool {
        self.uids.contains(&uid) || self.gids.contains(&gid)
    }

    fn is_private(&self) -> bool {
        *self == Self::same_user()
    }
}

/// The rights of a socket.
///
/// ```
/// use jitcast_compiler::{Access, Policy};
///
/// let mut policy = Policy { publish: Access::nobody(), ..Policy::default() };
/// policy.attach.allow_uid(33); // workers of www-data
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who may attach workers and ask for the status.
    pub attach: Access,
    /// Who may publish.
    pub publish: Access,
    /// Whose workers may ask for units of their own.
    pub request: Access,
    /// How what they ask for is made.
    pub requests: RequestOptions,
    /// How much publishers may have under way.
    pub publishing: PublishLimits,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attach: Access::same_user(),
            publish: Access::same_user(),
            request: Access::same_user(),
            requests: RequestOptions::default(),
            publishing: PublishLimits::default(),
        }
    }
}

impl Policy {
    /// Whether only the compiler's own user has any right.
    pub(crate) fn is_private(&self) -> bool {
        [&self.attach, &self.publish, &self.request]
            .into_iter()
            .all(Access::is_private)
    }
}
