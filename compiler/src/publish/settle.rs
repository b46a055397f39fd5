//! Which names a publication defines, and what it would break.

use jitcast_runtime::signature::Signature;

use super::{Batch, check_name, kind_of};
use crate::catalog::Kind;
use crate::error::PublishError;

impl Batch<'_, '_> {
    pub(super) fn settle_definitions(&mut self) -> Result<(), PublishError> {
        for (unit, prepared) in self.units.iter().enumerate() {
            for (index, definition) in prepared.definitions().iter().enumerate() {
                if definition.unique {
                    // Not the unit's to publish: the pool has it.
                    continue;
                }
                check_name(definition.name)?;
                let published = self.site.catalog.symbols.get(definition.name);
                let staying = published.filter(|symbol| !self.leaves(&symbol.unit));
                let rival = self.defined.get(definition.name).copied();
                let rival_is_weak = rival.is_none_or(|rival| self.definition(rival).weak);
                let other = match (staying, rival) {
                    (Some(symbol), _) => Some((symbol.unit.clone(), true)),
                    (None, Some((other, _))) if !rival_is_weak => {
                        Some((self.sources[other].name.clone(), false))
                    }
                    _ => None,
                };
                match other {
                    // A weak definition gives way; the unit itself goes on using its own.
                    Some((_, published)) if definition.weak => {
                        if published {
                            self.gave_way.insert(definition.name);
                        }
                    }
                    Some((other, published)) => {
                        return Err(PublishError::Duplicate {
                            symbol: definition.name.to_owned(),
                            unit: self.sources[unit].name.clone(),
                            other,
                            published,
                        });
                    }
                    None if rival.is_some() && definition.weak => {}
                    None => {
                        self.defined.insert(definition.name, (unit, index));
                    }
                }
            }
        }
        Ok(())
    }

    /// What the leaving units published must stay, or nobody who stays may use it.
    pub(super) fn check_leaving(&mut self) -> Result<(), PublishError> {
        for source in self.sources {
            let Some(old) = self.site.catalog.units.get(&source.name) else {
                continue;
            };
            for name in &old.defines {
                self.check_replaced(&source.name, name)?;
            }
        }
        self.asked
            .removals
            .iter()
            .try_for_each(|unit| self.check_removed(unit))
    }

    /// What a symbol of a leaving unit becomes; `None`: it goes.
    pub(super) fn becomes(&self, name: &str) -> Option<Kind> {
        let new = self.defined.get(name)?;
        Some(kind_of(self.definition(*new).kind))
    }

    /// The staying users of a symbol of a leaving unit that would notice.
    fn disturbed(&self, name: &str) -> Vec<String> {
        let was = self.site.catalog.symbols[name].kind;
        match self.becomes(name) {
            // Their cells follow.
            Some(Kind::Function) if was == Kind::Function => Vec::new(),
            Some(Kind::Data) if self.is_carried(name) => Vec::new(),
            _ => self.staying_users(name),
        }
    }

    fn check_replaced(&mut self, unit: &str, name: &str) -> Result<(), PublishError> {
        let becomes = self.becomes(name);
        let users = self.disturbed(name);
        let was = self.site.catalog.symbols[name].kind;
        if becomes.is_none() && (users.is_empty() || self.leaves_trap(was)) {
            self.goes(name, &users);
            return Ok(());
        }
        let (symbol, unit) = (name.to_owned(), unit.to_owned());
        Err(match becomes {
            _ if users.is_empty() => return Ok(()),
            None => PublishError::StillUsed {
                symbol,
                unit,
                users,
                is_data: was != Kind::Function,
            },
            Some(kind) if kind != was => PublishError::KindChanges {
                symbol,
                was: was.name(),
                becomes: kind.name(),
                users,
            },
            Some(_) => PublishError::DataMoves {
                symbol,
                unit,
                users,
            },
        })
    }

    fn check_removed(&mut self, unit: &String) -> Result<(), PublishError> {
        let Some(old) = self.site.catalog.units.get(unit) else {
            return Err(PublishError::NoSuchUnit { unit: unit.clone() });
        };
        let mut used = Vec::new();
        for name in &old.defines {
            let was = self.site.catalog.symbols[name].kind;
            let users = self.disturbed(name);
            let trap = self.becomes(name).is_none() && self.leaves_trap(was);
            if !users.is_empty() && !trap {
                used.push((name.clone(), users));
            } else if self.becomes(name).is_none() {
                self.goes(name, &users);
            }
        }
        if used.is_empty() {
            self.changes.removed_units.push(unit.clone());
            return Ok(());
        }
        used.sort();
        let (unit, traps_asked) = (unit.clone(), self.asked.options.leave_traps);
        Err(PublishError::RemovedInUse {
            unit,
            used,
            traps_asked,
        })
    }

    /// Whether a trap may stand where users expect what was of this kind: nothing can stand for a datum.
    fn leaves_trap(&self, was: Kind) -> bool {
        was == Kind::Function && self.asked.options.leave_traps
    }

    /// A published name is published no longer.
    fn goes(&mut self, name: &str, users: &[String]) {
        let name = name.to_owned();
        let hash = self.hash(&name);
        if !users.is_empty() {
            let symbol = self.site.catalog.symbols[&name].clone();
            self.changes.orphaned.insert(name.clone(), symbol);
        }
        self.changes.removed.push((name, hash));
    }

    /// What the batch publishes again of what went under its users has to be a function again.
    pub(super) fn check_orphans(&self) -> Result<(), PublishError> {
        for name in self.site.catalog.orphans.keys() {
            let users = self.staying_users(name);
            match self.becomes(name) {
                Some(kind) if kind != Kind::Function && !users.is_empty() => {
                    return Err(PublishError::KindChanges {
                        symbol: name.clone(),
                        was: Kind::Function.name(),
                        becomes: kind.name(),
                        users,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A function that is published already, and so may be called by units and handles, keeps its signature. Where one
    /// of both is unknown, nothing can be said.
    pub(super) fn check_signatures(&self) -> Result<(), PublishError> {
        if self.asked.options.change_signatures {
            return Ok(());
        }
        let was = |name: &str| Some(&self.site.catalog.function(name)?.signature);
        let changes = |&(&name, &at): &(&&str, &(usize, usize))| {
            let becomes = self.recorded_signature(at.0, name);
            let is_function = self.becomes(name) == Some(Kind::Function);
            is_function && was(name).is_some_and(|was| differ(was, becomes))
        };
        // Of several, always the same one is named.
        let Some((&name, &(unit, _))) = self.defined.iter().filter(changes).min() else {
            return Ok(());
        };
        Err(PublishError::SignatureChanges {
            symbol: name.to_owned(),
            unit: self.sources[unit].name.clone(),
            was: was(name).cloned().unwrap_or_default(),
            becomes: self.recorded_signature(unit, name).to_owned(),
            users: self.staying_users(name),
        })
    }
}

/// Whether two recorded signatures are known and not those of one function. Text that is no signature of ours stands
/// for what no host can call.
pub(super) fn differ(was: &str, becomes: &str) -> bool {
    if was.is_empty() || becomes.is_empty() || was == becomes {
        return false;
    }
    match (was.parse::<Signature>(), becomes.parse::<Signature>()) {
        (Ok(was), Ok(becomes)) => !was.compatible(&becomes),
        _ => was != becomes,
    }
}
