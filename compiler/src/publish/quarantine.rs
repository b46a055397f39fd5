//! Symbol updates: functions that are not to be reached for a while.

use std::collections::HashSet;

use jitcast_runtime::directory::{Edit, record_flags};
use jitcast_runtime::records::CellValue;

use super::{Batch, check_name};
use crate::catalog::{Kind, Symbol};
use crate::changeset::SymbolUpdate;
use crate::error::PublishError;

impl Batch<'_, '_> {
    /// Refuses updates of what is not there, and of what would let others call a trap.
    pub(super) fn check_updates(&mut self) -> Result<(), PublishError> {
        for update in self.asked.updates {
            match update {
                SymbolUpdate::Quarantine(name) => {
                    check_name(name)?;
                    self.check_quarantine(name)?;
                    self.changes.quarantined.insert(name.clone(), true);
                }
                SymbolUpdate::Restore(name) => {
                    check_name(name)?;
                    if !self.is_quarantined(name) {
                        let symbol = name.clone();
                        return Err(PublishError::NotQuarantined { symbol });
                    }
                    self.changes.quarantined.insert(name.clone(), false);
                }
            }
        }
        Ok(())
    }

    fn check_quarantine(&self, name: &str) -> Result<(), PublishError> {
        let symbol = name.to_owned();
        let published = self.site.catalog.symbols.get(name);
        let staying = published.filter(|symbol| !self.leaves(&symbol.unit));
        let kind = self.becomes(name).or(staying.map(|symbol| symbol.kind));
        if kind != Some(Kind::Function) {
            return Err(PublishError::NotAFunction { symbol });
        }
        let users = self.staying_users(name);
        if users.is_empty() || self.asked.options.leave_traps {
            return Ok(());
        }
        Err(PublishError::QuarantinedInUse { symbol, users })
    }

    /// Has the records of updated symbols written.
    pub(super) fn update_symbols(&mut self, edit: &mut Edit) {
        let removed: HashSet<_> = self.changes.removed.iter().map(|(name, _)| name).collect();
        for name in self.changes.quarantined.keys() {
            let published = self.site.catalog.symbols.get(name);
            if let Some(symbol) = published.filter(|_| !removed.contains(name)) {
                let known = self.changes.symbols.entry(name.clone());
                known.or_insert_with(|| symbol.clone());
            }
            // Handles look at the record, which a ring record does not carry.
            edit.flag(record_flags::RESYNC);
        }
    }

    /// Whether whatever is published under `name` is not to be reached.
    fn is_quarantined(&self, name: &str) -> bool {
        let changed = self.changes.quarantined.get(name).copied();
        changed.unwrap_or_else(|| self.site.catalog.quarantined.contains(name))
    }

    /// What the record and the call cell of a function say.
    pub(super) fn reached(&self, name: &str, symbol: &Symbol) -> (u32, CellValue) {
        symbol.reached(self.is_quarantined(name))
    }
}
