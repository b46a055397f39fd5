//! Names that are published no longer, and the cells that they leave.

use jitcast_runtime::directory::Edit;
use jitcast_runtime::heap::Txn;
use jitcast_runtime::records::CellValue;

use super::Batch;
use super::place::retire_cells;
use crate::catalog::Symbol;

impl Batch<'_, '_> {
    /// Removes the names that go. Where users stay, the cells stay with them: the call cell leads to a trap until the
    /// name is published again, and the address goes on to be the stub's.
    pub(super) fn remove_symbols(&mut self, txn: &mut Txn<'_>, edit: &mut Edit) {
        for (name, key) in &self.changes.removed.clone() {
            let symbol = &self.site.catalog.symbols[name];
            let is_orphan = self.changes.orphaned.contains_key(name);
            let address_cell = symbol.address_cell.filter(|_| !is_orphan);
            for cell in symbol.call_cell.into_iter().chain(address_cell) {
                edit.set_cell(cell, CellValue::UNBOUND);
            }
            if !is_orphan {
                self.give_up_cells(txn, name, symbol);
            }
            edit.remove_symbol(txn, *key);
        }
    }

    /// Lets go of the cells of orphans that nobody uses any more, and counts those that are published again no longer
    /// as such.
    pub(super) fn release_orphans(&mut self, txn: &mut Txn<'_>) {
        for (name, orphan) in &self.site.catalog.orphans {
            let again = self.changes.symbols.get(name);
            let again = again.is_some_and(|symbol| symbol.call_cell == orphan.call_cell);
            let unused = !again && self.staying_users(name).is_empty();
            if unused {
                self.give_up_cells(txn, name, orphan);
            }
            if again || unused {
                self.changes.settled.push(name.clone());
            }
        }
    }

    /// Retires a symbol's cells, unless kept code may go on using them.
    fn give_up_cells(&mut self, txn: &mut Txn<'_>, name: &str, symbol: &Symbol) {
        if self.leaves_cells(name) {
            self.changes.left.push(name.to_owned());
        } else {
            retire_cells(txn, symbol);
        }
    }
}
