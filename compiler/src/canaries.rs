//! Canaries: promoted or aborted, once they run.

use crate::compiler::Compiler;
use crate::error::PublishError;
use crate::publish::{self, Ending, Publication, Retaining};
use crate::state::State;

impl Compiler {
    /// Lets the units of a canary replace what is published, for all workers. Those that run them already go on as they are;
    /// the others bind them at their next guard. `canary` is its number, or the name of a unit of it.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn promote(&self, canary: &str) -> Result<Publication, PublishError> {
        self.decide(canary, |state| {
            let id = find_canary(state, canary)?;
            let retained = state.catalog.canaries[&id].retained.clone();
            let names: Vec<_> = retained.iter().map(|unit| unit.name.clone()).collect();
            let (generation, published_ns) = self.commit(
                state,
                &Retaining::known(retained, &[]),
                |site, txn, edit| {
                    let catalog = site.catalog;
                    let canary = &catalog.canaries[&id];
                    let mut changes = Ending::new(site, canary).promote(txn, edit)?;
                    publish::dismiss_asked(catalog, &mut changes, txn, edit);
                    Ok(changes)
                },
            )?;
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            Ok(Publication {
                generation,
                published_ns,
                ..state.catalog.describe(&names)
            })
        })
    }

    /// Lets nobody run the units of a canary any more: those that did go back to what is published, at their next guards.
    /// `canary` is its number, or the name of a unit of it.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn abort(&self, canary: &str) -> Result<Publication, PublishError> {
        self.decide(canary, |state| {
            let id = find_canary(state, canary)?;
            let gone = state.catalog.canaries[&id].retained.clone();
            let removed = state.catalog.canaries[&id].names();
            let removed = removed.map(str::to_owned).collect();
            let (generation, published_ns) =
                self.commit(state, &Retaining::nothing(), |site, txn, edit| {
                    let canary = &site.catalog.canaries[&id];
                    Ok(Ending::new(site, canary).abort(txn, edit))
                })?;
            gone.iter().for_each(|unit| state.contents.release(unit));
            Ok(Publication {
                generation,
                published_ns,
                removed,
                ..Publication::default()
            })
        })
    }

    /// Ends a canary. Also while threads hold back more than is allowed: it takes next to no memory.
    fn decide(
        &self,
        canary: &str,
        end: impl Fn(&mut State) -> Result<Publication, PublishError>,
    ) -> Result<Publication, PublishError> {
        let mut state = self.state.lock();
        find_canary(&state, canary)?;
        self.make_visible(&mut state, end)
    }
}

/// The number of the canary that is called `name`.
fn find_canary(state: &State, name: &str) -> Result<u64, PublishError> {
    publish::check_name(name)?;
    let canary = state.catalog.find_canary(name);
    let canary = canary.ok_or_else(|| PublishError::NoSuchCanary {
        canary: name.to_owned(),
    })?;
    Ok(canary.id)
}
