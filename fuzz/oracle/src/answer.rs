//! Where a use of a symbol has to lead, by the rules that the linker documents.

use crate::judge::Meaning;
use crate::layout::{Layout, Rules, Stored, Window};
use crate::usage::Usage;

/// Where a use may lead. Both may be allowed, or one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// To this address.
    pub(crate) direct: Option<u64>,
    /// Through this entry of the global offset table.
    pub(crate) entry: Option<Entry>,
    /// To code that jumps to `direct`, too.
    pub(crate) linkage: bool,
}

/// An entry of the global offset table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// This one.
    At(u64),
    /// Any that holds this address.
    Holding(u64),
    /// Any that holds these two words.
    Pair(u64, u64),
    /// Any in which the worker stores this, and that in the next one.
    Stored(Stored, Option<Stored>),
}

impl Answer {
    fn direct(address: u64) -> Self {
        Self {
            direct: Some(address),
            ..Self::default()
        }
    }

    fn entry(entry: Entry) -> Self {
        Self {
            entry: Some(entry),
            ..Self::default()
        }
    }
}

/// Where a use of `meaning` leads; the error says what the layout lacks.
pub(crate) fn answer(
    layout: &Layout,
    usage: Usage,
    meaning: &Meaning<'_>,
    addend: i64,
    in_text: bool,
) -> Result<Answer, String> {
    match &layout.rules {
        Rules::Executable { .. } => executable(layout, meaning),
        Rules::Window(window) => in_window(layout, window, usage, meaning, addend, in_text),
    }
}

/// Any entry will do that holds the address; nobody says where it is.
fn executable(layout: &Layout, meaning: &Meaning<'_>) -> Result<Answer, String> {
    let address = match *meaning {
        Meaning::Lost => return Ok(Answer::default()),
        Meaning::Own { address, .. } => address,
        Meaning::Number(value) => value,
        Meaning::Outside(name) => *layout
            .outside
            .get(name)
            .ok_or_else(|| format!("nobody says where `{name}` is"))?,
        Meaning::Table => layout.table.ok_or("nobody says where the table is")?,
    };
    Ok(Answer {
        direct: Some(address),
        entry: Some(Entry::Holding(address)),
        linkage: true,
    })
}

/// What the project's architecture says of calls and addresses, row by row.
fn in_window(
    layout: &Layout,
    window: &Window,
    usage: Usage,
    meaning: &Meaning<'_>,
    addend: i64,
    in_text: bool,
) -> Result<Answer, String> {
    let find = |name: &str| {
        let found = window.published.get(name).copied();
        found.ok_or_else(|| format!("`{name}` has neither cells nor a stub"))
    };
    if let Some(answer) = thread_local(layout, window, usage, meaning) {
        return answer;
    }
    let table = layout.table.ok_or("nobody says where the window is")?;
    match (meaning, usage) {
        (Meaning::Lost, _) => Err("nobody says where the symbol is".to_owned()),
        // What has no row of its own: the start of the window is a place like another, a number a number.
        (Meaning::Table, _) => Ok(Answer::direct(table)),
        (
            &Meaning::Number(value),
            Usage::Word | Usage::Value | Usage::Number | Usage::TableDistance,
        ) => Ok(Answer::direct(value)),
        (&Meaning::Number(value), _) => Ok(Answer::entry(Entry::Holding(value))),

        // Another unit's or the host's: never directly, but for calls, which the stub takes.
        (Meaning::Outside(name), Usage::EntryCall | Usage::EntryJump) => {
            Ok(Answer::entry(Entry::At(find(name)?.call_cell)))
        }
        (
            Meaning::Outside(name),
            Usage::Branch | Usage::LinkageDistance | Usage::LinkageTableDistance,
        ) => Ok(Answer::direct(find(name)?.stub)),
        (Meaning::Outside(name), Usage::Word) if !in_text => {
            let address = layout.outside.get(*name);
            let address = address.ok_or_else(|| format!("nobody says where `{name}` is"))?;
            Ok(Answer::direct(*address))
        }
        (
            Meaning::Outside(name),
            Usage::EntryLoad | Usage::Entry | Usage::Lea | Usage::Operand | Usage::Word,
        ) => Ok(Answer::entry(Entry::At(find(name)?.address_cell))),
        (Meaning::Outside(name), _) => {
            Err(format!("`{name}` is outside, and nothing leads there so"))
        }

        // The unit's own: directly. Whoever takes an address of what others can see takes the canonical one.
        (own @ Meaning::Own { address, .. }, _) => {
            let canonical = match own.seen_code() {
                Some(name) => find(name)?.stub,
                None => *address,
            };
            Ok(match usage {
                Usage::EntryLoad | Usage::Lea | Usage::Distance | Usage::LinkageDistance => {
                    Answer::direct(canonical)
                }
                // An address inside a function is that of its code: a stub has no inside.
                Usage::Word | Usage::TableDistance | Usage::LinkageTableDistance => {
                    Answer::direct(if addend == 0 { canonical } else { *address })
                }
                Usage::Entry => match own.seen() {
                    Some(name) => Answer::entry(Entry::At(find(name)?.address_cell)),
                    None => Answer::entry(Entry::Holding(*address)),
                },
                _ => Answer::direct(*address),
            })
        }
    }
}

/// What is asked of a thread-local symbol; `None` if the use is another one.
fn thread_local(
    layout: &Layout,
    window: &Window,
    usage: Usage,
    meaning: &Meaning<'_>,
) -> Option<Result<Answer, String>> {
    let module = || {
        window
            .module
            .ok_or("nobody says where the unit's module is")
    };
    let block = || layout.block.ok_or("nobody says where the block is");
    let answer = match (usage, meaning) {
        (Usage::Pair, Meaning::Own { address, .. }) => module().and_then(|module| {
            let offset = address.wrapping_sub(block()?);
            Ok(Answer::entry(Entry::Pair(module, offset)))
        }),
        (Usage::Pair, Meaning::Outside(name)) => Ok(match window.thread_local.get(*name) {
            Some(&(module, offset)) => Answer::entry(Entry::Pair(module, offset)),
            None => Answer::entry(Entry::Stored(
                Stored::Module((*name).to_owned()),
                Some(Stored::Offset((*name).to_owned())),
            )),
        }),
        (Usage::BlockPair, Meaning::Own { .. }) => {
            module().map(|module| Answer::entry(Entry::Pair(module, 0)))
        }
        (Usage::FromThread, Meaning::Outside(name)) => Ok(Answer::entry(Entry::Stored(
            Stored::FromThread((*name).to_owned()),
            None,
        ))),
        (Usage::BlockOffset, Meaning::Own { address, .. }) => Ok(Answer::direct(*address)),
        (Usage::Pair | Usage::BlockPair | Usage::FromThread | Usage::BlockOffset, _) => {
            Err("asks for a thread's storage of what has none")
        }
        _ => return None,
    };
    Some(answer.map_err(str::to_owned))
}
