//! Units and the segment, as more than one command takes them.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use jitcast::compiler::front;
use jitcast::compiler::{LinkOptions, Reclaim};
use jitcast::runtime::signature::NamedSignature;

/// The files of a unit and how they are compiled.
#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct UnitArgs {
    /// CLIF (.clif), C (.c), ELF objects (.o) and archives (.a): one unit together.
    #[arg(required = true)]
    pub(in crate::cli) files: Vec<PathBuf>,
    /// The unit's name; publishing the same name again replaces it [default: the first file's stem].
    #[arg(long)]
    pub(in crate::cli) unit: Option<String>,
    /// A signature to record, as `score(long) -> long`, where debugging information says none; may be repeated.
    #[arg(long = "sig", value_name = "SIGNATURE")]
    pub(in crate::cli) signatures: Vec<NamedSignature>,
    /// The C compiler.
    #[arg(long, default_value = front::cc::DEFAULT_CC)]
    pub(in crate::cli) cc: String,
    /// Its flags, in place of `-O2 -g -fno-var-tracking -fPIC -fno-plt`. Without `-g`, signatures are unknown.
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    pub(in crate::cli) cflags: Option<String>,
    /// Reuse the unit's memory once it is replaced or removed; `no`: never, for code that hands its static functions
    /// (callbacks that the host keeps) or static data to the host [default: CLIF yes, C and objects no, since
    /// these may have done so].
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "yes", require_equals = true)]
    pub(in crate::cli) reclaim: Option<YesNo>,
    /// Take every member of every archive, wanted or not.
    #[arg(long)]
    pub(in crate::cli) whole_archive: bool,
    /// Drop the sections that no root reaches; roots are the functions and data given by --root.
    #[arg(long, requires = "roots")]
    pub(in crate::cli) gc_sections: bool,
    /// A function or datum that --gc-sections keeps, with all that it reaches; may be repeated.
    #[arg(long = "root", value_name = "SYMBOL", requires = "gc_sections")]
    pub(in crate::cli) roots: Vec<String>,
    /// Give the unit a copy of this datum of the host, for code that reaches it directly and is not compiled with
    /// -fPIC; what the host stores later is not seen. Its length, bytes, unless it is that of an address.
    #[arg(long, value_name = "SYMBOL[:BYTES]")]
    pub(in crate::cli) copy_data: Vec<CopyData>,
}

/// A datum of the host to copy.
#[derive(Debug, Clone)]
pub(in crate::cli) struct CopyData {
    name: String,
    len_bytes: u64,
}

impl std::str::FromStr for CopyData {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, len_bytes) = match text.split_once(':') {
            None => (text, 8),
            Some((name, len_bytes)) => {
                let wrong = |_| format!("`{len_bytes}` is no number of bytes");
                (name, len_bytes.parse().map_err(wrong)?)
            }
        };
        if name.is_empty() || len_bytes == 0 {
            return Err("expected `SYMBOL` or `SYMBOL:BYTES`".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            len_bytes,
        })
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum YesNo {
    Yes,
    No,
}

impl UnitArgs {
    /// The unit's name.
    pub(in crate::cli) fn name(&self) -> String {
        self.unit
            .clone()
            .unwrap_or_else(|| front::unit_name(&self.files[0]))
    }

    /// What happens to its memory.
    pub(in crate::cli) fn reclaim(&self) -> Reclaim {
        match self.reclaim {
            None => Reclaim::Auto,
            Some(YesNo::Yes) => Reclaim::Yes,
            Some(YesNo::No) => Reclaim::No,
        }
    }

    /// How it is linked.
    pub(in crate::cli) fn link(&self) -> LinkOptions {
        let copies = self.copy_data.iter();
        LinkOptions {
            whole_archive: self.whole_archive,
            roots: self.gc_sections.then(|| self.roots.clone()),
            copies: copies
                .map(|copy| (copy.name.clone(), copy.len_bytes))
                .collect(),
        }
    }

    /// How it is compiled.
    pub(in crate::cli) fn options(&self, cpu: Cpu) -> front::Options {
        let mut options = front::Options {
            cc: self.cc.clone(),
            cpu: cpu.into(),
            ..front::Options::default()
        };
        if let Some(flags) = &self.cflags {
            options.cflags = flags.split_whitespace().map(str::to_owned).collect();
        }
        options
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(in crate::cli) enum Cpu {
    /// This machine's processor.
    #[default]
    Host,
    /// Any x86-64.
    Baseline,
}

impl From<Cpu> for front::Cpu {
    fn from(cpu: Cpu) -> Self {
        match cpu {
            Cpu::Host => Self::Host,
            Cpu::Baseline => Self::Baseline,
        }
    }
}

/// How the segment is to be.
#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct SegmentArgs {
    /// Length of the window, MiB of address space (not memory): 8 to 2047 [default: what the journal says, else 1024].
    #[arg(long, value_name = "MIB")]
    pub(in crate::cli) window: Option<u64>,
    /// Use a named segment in /dev/shm instead of a sealed one.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) name: Option<String>,
    /// The processor that CLIF is compiled for.
    #[arg(long, value_enum, default_value_t)]
    pub(in crate::cli) cpu: Cpu,
    /// Serve metrics for Prometheus over HTTP at this address, as `127.0.0.1:9464`; port 0 takes any that is free. Whoever reaches it may
    /// read them.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(in crate::cli) metrics: Option<std::net::SocketAddr>,
}
