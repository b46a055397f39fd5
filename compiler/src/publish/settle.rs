//! Which names a publication defines, and what it would break.

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
                let staying = published.filter(|symbol| !self.replaces(&symbol.unit));
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

    /// What the replaced units published must stay, or nobody who stays may use it.
    pub(super) fn check_replaced(&mut self) -> Result<(), PublishError> {
        for source in self.sources {
            let Some(old) = self.site.catalog.units.get(&source.name) else {
                continue;
            };
            for name in &old.defines {
                let symbol = &self.site.catalog.symbols[name];
                let becomes = self
                    .defined
                    .get(name.as_str())
                    .map(|new| kind_of(self.definition(*new).kind));
                let unused = becomes == Some(Kind::Function) && symbol.kind == Kind::Function;
                let users = if unused {
                    Vec::new()
                } else {
                    self.site
                        .catalog
                        .users_of(name, &|unit| self.replaces(unit))
                };
                let (symbol_name, unit) = (name.clone(), source.name.clone());
                match becomes {
                    _ if users.is_empty() => {}
                    None => {
                        let is_data = symbol.kind != Kind::Function;
                        return Err(PublishError::StillUsed {
                            symbol: symbol_name,
                            unit,
                            users,
                            is_data,
                        });
                    }
                    Some(kind) if kind != symbol.kind => {
                        let (was, becomes) = (symbol.kind.name(), kind.name());
                        return Err(PublishError::KindChanges {
                            symbol: symbol_name,
                            was,
                            becomes,
                            users,
                        });
                    }
                    Some(_) => {
                        return Err(PublishError::DataMoves {
                            symbol: symbol_name,
                            unit,
                            users,
                        });
                    }
                }
                if becomes.is_none() {
                    self.changes.removed.push((name.clone(), self.hash(name)));
                }
            }
        }
        Ok(())
    }
}
