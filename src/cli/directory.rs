//! What is published, read from a segment into this process.

use std::collections::BTreeMap;

use jitcast::runtime::host_name::HostName;
use jitcast::runtime::needs::Needs;
use jitcast::runtime::observer::Look;
use jitcast::runtime::records::{
    CanaryRecord, ImportRecord, SYMBOL_HIDDEN, SymbolRecord, UnitRecord, hash_name, trailing_text,
};
use jitcast::runtime::{Corrupt, index};

/// All of it.
#[derive(Debug)]
pub(super) struct Directory {
    /// Published names.
    pub(super) symbols: Vec<Symbol>,
    /// Host symbols, by number.
    pub(super) imports: BTreeMap<u32, Import>,
    /// Units, those of canaries too, by number.
    pub(super) units: BTreeMap<u32, Unit>,
}

/// A published name.
#[derive(Clone, Debug)]
pub(super) struct Symbol {
    pub(super) name: String,
    /// `None`: unknown.
    pub(super) signature: Option<String>,
    pub(super) record: SymbolRecord,
    /// The canary that has this version of it.
    pub(super) canary: Option<u64>,
}

/// A host symbol.
#[derive(Clone, Debug)]
pub(super) struct Import {
    /// Its name, and its version.
    pub(super) name: String,
    /// How it is called, where that is known.
    pub(super) signature: Option<String>,
    pub(super) record: ImportRecord,
}

/// A unit.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) name: String,
    pub(super) record: UnitRecord,
}

impl Directory {
    /// Reads it.
    pub(super) fn read(look: &Look<'_>) -> Result<Self, Corrupt> {
        let (view, root) = (look.view(), look.root);
        let mut canaries: Vec<CanaryRecord> = Vec::new();
        index::walk(view, root.canaries, 0, &mut |at| {
            canaries.push(view.read(at)?);
            Ok::<_, Corrupt>(())
        })?;
        let mut symbols = Vec::new();
        for (index, is_overlay) in [(root.symbols, false), (root.overlay, true)] {
            index::walk(view, index, 0, &mut |at| {
                let record: SymbolRecord = view.read(at)?;
                let text = |skip, len| trailing_text::<SymbolRecord>(view, at, skip, len);
                let signature = text(record.name_len, record.signature_len)?;
                let canary = canaries.iter().find(|canary| canary.has_unit(record.unit));
                if record.flags & SYMBOL_HIDDEN == 0 {
                    symbols.push(Symbol {
                        name: text(0, record.name_len)?,
                        signature: (!signature.is_empty()).then_some(signature),
                        record,
                        canary: canary.filter(|_| is_overlay).map(|canary| canary.key),
                    });
                }
                Ok::<_, Corrupt>(())
            })?;
        }
        let mut imports = BTreeMap::new();
        index::walk(view, root.imports, 0, &mut |at| {
            let record: ImportRecord = view.read(at)?;
            let name = trailing_text::<ImportRecord>(view, at, 0, record.name_len)?;
            let host = HostName::parse(&name);
            let import = Import {
                name: host.name.to_owned(),
                signature: host.signature.map(|signature| signature.to_string()),
                record,
            };
            imports.insert(record.key as u32, import);
            Ok::<_, Corrupt>(())
        })?;
        let mut units = BTreeMap::new();
        index::walk(view, root.units, 0, &mut |at| {
            let record: UnitRecord = view.read(at)?;
            let name = trailing_text::<UnitRecord>(view, at, 0, record.name_len)?;
            units.insert(record.key as u32, Unit { name, record });
            Ok::<_, Corrupt>(())
        })?;
        Ok(Self {
            symbols,
            imports,
            units,
        })
    }

    /// The versions of `name`: the published one first.
    pub(super) fn versions(&self, name: &str) -> Vec<&Symbol> {
        let mut versions: Vec<_> = self.symbols.iter().collect();
        versions.retain(|symbol| symbol.name == name);
        versions
    }

    /// What a worker that runs `canaries` means by the name of this hash.
    pub(super) fn meant(&self, hash: u64, canaries: &[u64]) -> Option<&Symbol> {
        let named = self.symbols.iter();
        let named = named.filter(|symbol| symbol.record.key == hash);
        let of_all = |symbol: &&Symbol| symbol.canary.is_none();
        let own = |symbol: &&Symbol| symbol.canary.is_some_and(|id| canaries.contains(&id));
        named
            .clone()
            .find(own)
            .or_else(|| named.clone().find(of_all))
    }

    /// The hash of a name in this segment.
    pub(super) fn hash(look: &Look<'_>, name: &str) -> u64 {
        hash_name(name.as_bytes(), look.observer().header().hash_seed)
    }

    /// What the unit of this number needs.
    pub(super) fn needs(&self, look: &Look<'_>, unit: u32) -> Result<Needs, Corrupt> {
        let region = self
            .units
            .get(&unit)
            .and_then(|unit| unit.record.needs.region());
        match region {
            Some(region) if region.len_bytes > 0 => Needs::read(look.view(), region),
            _ => Ok(Needs::default()),
        }
    }
}
