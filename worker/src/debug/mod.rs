//! What debuggers and profilers are shown of published code: for those who ask, and nothing of it for anybody else.
//!
//! Who asks is the host ([`DebugOptions`]), the environment (`JITCAST_DEBUG`) or, at run time, the compiler process by a word of the
//! mailbox. What is shown follows the directory: a text is shown before anything of it runs, but for what is done when no thread
//! is inside any more that may be in the old one. Invariant: whatever goes wrong here is told to the host, and changes nothing of
//! what is applied.

mod dump;
mod file;
mod gdb;
mod options;
mod perf_map;
mod source;
mod text;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jitcast_runtime::debug::Wanted;
use jitcast_runtime::index;
use jitcast_runtime::mailbox::Word;
use jitcast_runtime::records::{Root, TextRecord};
use jitcast_runtime::{Corrupt, SegmentOffset};

use crate::log::{Event, note};
use crate::worker::{Inner, State};

pub(crate) use gdb::{Listed, lock_list};
pub use options::DebugOptions;
use text::Text;

/// How many texts are looked at in each publication for whether they are there still, beside those that it replaced.
const LOOKS: usize = 256;

/// What a worker shows, and who asked for it.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// What the host and its environment ask for.
    given: DebugOptions,
    /// What the compiler process has said, as it was seen last.
    word: u64,
    /// Whether what is wanted has changed since.
    changed: bool,
    shown: Option<Shown>,
}

/// What is shown.
#[derive(Debug, Default)]
struct Shown {
    lines: bool,
    /// By their starts.
    texts: BTreeMap<u32, Arc<Text>>,
    /// Where the texts of each unit begin, by its name.
    named: HashMap<String, Vec<u32>>,
    /// Texts that may be gone.
    suspects: BTreeSet<u32>,
    /// Where the next look for what is gone begins.
    next: u32,
    /// The generation that this is in agreement with.
    generation: u64,
    gdb: Option<gdb::Files>,
    dump: Option<dump::Dump>,
    map: Option<perf_map::Map>,
}

impl Tools {
    /// What the host asks for by `options`, and the environment besides.
    pub(crate) fn new(options: &DebugOptions, events: &mut Vec<Event>) -> Self {
        let mut given = options.clone();
        if let Err(why) = given.add_environment() {
            note(events, Event::NotShown { why });
        }
        Self {
            changed: given.wanted() != Wanted::default(),
            given,
            ..Self::default()
        }
    }

    /// In a forked child: files that the parent writes are the parent's. Whether the child is to have its own.
    pub(crate) fn begin_anew(&mut self) -> bool {
        let has_files = |shown: &&mut Shown| shown.dump.is_some() || shown.map.is_some();
        let Some(shown) = self.shown.as_mut().filter(has_files) else {
            return false;
        };
        (shown.dump, shown.map) = (None, None);
        self.changed = true;
        true
    }

    /// What is to be shown now.
    fn wanted(&self) -> Wanted {
        Wanted::of(self.word).unwrap_or_else(|| self.given.wanted())
    }
}

impl Inner {
    /// Whether something is shown, or is to be.
    pub(crate) fn shows(&self, state: &State) -> bool {
        let word = self.mailbox().word(Word::Wanted).load(Ordering::Relaxed);
        state.tools.shown.is_some() || state.tools.changed || state.tools.word != word
    }

    /// Has the next guard look, if something else is wanted than is shown.
    pub(crate) fn look_at_wanted(&self) {
        let word = self.mailbox().word(Word::Wanted).load(Ordering::Relaxed);
        if let Ok(state) = self.state().try_lock()
            && (state.tools.word != word || state.tools.changed)
        {
            self.close_gate();
        }
    }

    /// Brings what is shown into agreement with `root`, whose texts are mapped, and with what is wanted. If `nobody` else is
    /// inside, what is gone is shown no longer.
    pub(crate) fn show(&self, state: &mut State, nobody: bool, root: &Root) {
        if !self.shows(state) {
            return;
        }
        let State { tools, events, .. } = state;
        let word = self.mailbox().word(Word::Wanted).load(Ordering::Relaxed);
        if word != tools.word || tools.changed {
            (tools.word, tools.changed) = (word, false);
            // What is not wanted any more goes, and what is begins afresh; but a profiler that has found a dump knows that one.
            let dump = tools.shown.take().and_then(|shown| shown.dump);
            let (wanted, folder) = (tools.wanted(), tools.given.folder());
            tools.shown = Shown::begin(wanted, dump, &folder, events);
        }
        if let Some(shown) = &mut tools.shown
            && shown.update(self, nobody, root, events).is_err()
        {
            // Whoever applies something meets it, too.
            let why = "the directory cannot be read".to_owned();
            note(events, Event::NotShown { why });
        }
    }

    /// Nobody is inside any more at a generation before the newest: what is gone is shown no longer.
    pub(crate) fn show_settled(&self, state: &mut State) {
        let suspects = |shown: &&mut Shown| !shown.suspects.is_empty();
        let shown = state.tools.shown.as_mut().filter(suspects);
        if let Some(shown) = shown
            && let Ok(root) = self.window().control().read::<Root>(state.root_at)
        {
            // As above.
            let _ = shown.remove_gone(self, &root);
        }
    }
}

impl Shown {
    /// Begins to show what is `wanted`; `None`: nothing.
    fn begin(
        wanted: Wanted,
        dump: Option<dump::Dump>,
        folder: &Path,
        events: &mut Vec<Event>,
    ) -> Option<Self> {
        let mut shown = Self {
            lines: wanted.lines,
            ..Self::default()
        };
        let mut failed = |why: String| note(events, Event::NotShown { why });
        if wanted.names {
            shown.gdb = Some(gdb::Files::default());
        }
        if wanted.jitdump {
            let begin = || dump::Dump::begin(folder).map_err(&mut failed).ok();
            shown.dump = dump.or_else(begin);
        }
        if wanted.perf_map {
            shown.map = perf_map::Map::begin(folder).map_err(&mut failed).ok();
        }
        let any = shown.gdb.is_some() || shown.dump.is_some() || shown.map.is_some();
        any.then_some(shown)
    }

    fn update(
        &mut self,
        worker: &Inner,
        nobody: bool,
        root: &Root,
        events: &mut Vec<Event>,
    ) -> Result<(), Corrupt> {
        let view = worker.window().control();
        let mut new = Vec::new();
        index::walk(view, root.texts, self.generation, &mut |at| {
            let record: TextRecord = view.read(at)?;
            let known = self.texts.get(&record.text.start);
            if known.is_none_or(|known| known.unit != record.unit) {
                new.push(Text::read(worker.window(), at, &record)?);
            }
            Ok::<_, Corrupt>(())
        })?;
        self.generation = root.generation;
        self.suspect(&new);
        if nobody {
            self.remove_gone(worker, root)?;
        }
        // What lies where something new lies cannot be run any more.
        let dead: Vec<u32> = new.iter().flat_map(|text| self.around(text)).collect();
        self.take_out(&dead);
        if self.lines && !new.is_empty() {
            let what = (self.gdb.is_some(), self.dump.is_some());
            if let Err(why) = source::fill(worker, &mut new, what) {
                note(events, Event::NotShown { why });
            }
        }
        self.put_in(worker, new, events);
        Ok(())
    }

    /// Remembers to look whether the earlier texts of the units are there, and so many others.
    fn suspect(&mut self, new: &[Text]) {
        for text in new {
            let earlier = self.named.get(&text.name);
            self.suspects.extend(earlier.into_iter().flatten());
        }
        let starts = self.texts.range(self.next..).map(|(start, _)| *start);
        let looked: Vec<u32> = starts.take(LOOKS).collect();
        // Around, once the end is reached.
        self.next = match looked.last() {
            Some(last) if looked.len() == LOOKS => last + 1,
            _ => 0,
        };
        self.suspects.extend(looked);
    }

    /// The texts that are shown where `text` lies.
    fn around(&self, text: &Text) -> Vec<u32> {
        let end = text.start.saturating_add(text.len_bytes);
        let before = self.texts.range(..end).rev();
        let around =
            before.take_while(|(start, known)| start.saturating_add(known.len_bytes) > text.start);
        around.map(|(start, _)| *start).collect()
    }

    /// Takes out what is suspected to be gone, and is.
    fn remove_gone(&mut self, worker: &Inner, root: &Root) -> Result<(), Corrupt> {
        let view = worker.window().control();
        let mut gone = Vec::new();
        for start in core::mem::take(&mut self.suspects) {
            let Some(known) = self.texts.get(&start) else {
                continue;
            };
            let key = index::by_place(SegmentOffset::new(start));
            let found = index::get(view, root.texts, key)?;
            let found = found.map(|at| view.read::<TextRecord>(at)).transpose()?;
            if found.is_none_or(|text| text.unit != known.unit) {
                gone.push(start);
            }
        }
        self.take_out(&gone);
        Ok(())
    }

    fn take_out(&mut self, starts: &[u32]) {
        let removed = starts.iter().filter_map(|start| self.texts.remove(start));
        let removed: Vec<_> = removed.collect();
        for text in &removed {
            if let Some(named) = self.named.get_mut(&text.name) {
                named.retain(|start| *start != text.start);
                if named.is_empty() {
                    self.named.remove(&text.name);
                }
            }
        }
        if let (Some(gdb), false) = (&mut self.gdb, removed.is_empty()) {
            gdb.remove(starts);
        }
        if let (Some(map), false) = (&mut self.map, removed.is_empty()) {
            map.remove(&removed);
        }
    }

    fn put_in(&mut self, worker: &Inner, new: Vec<Text>, events: &mut Vec<Event>) {
        let new: Vec<_> = new.into_iter().map(Arc::new).collect();
        for text in &new {
            self.named
                .entry(text.name.clone())
                .or_default()
                .push(text.start);
            self.texts.insert(text.start, Arc::clone(text));
        }
        let base = worker.window().base().get();
        if let Some(gdb) = &mut self.gdb {
            gdb.add(base, &new);
        }
        if let Some(dump) = &mut self.dump
            && let Err(why) = dump.load(worker.window(), &new)
        {
            note(events, Event::NotShown { why });
            self.dump = None;
        }
        if let Some(map) = &mut self.map
            && let Err(why) = map.add(base, &new, &self.texts)
        {
            note(events, Event::NotShown { why });
            self.map = None;
        }
    }
}
