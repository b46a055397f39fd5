//! Host symbols: what published code may import from this process.
//!
//! An explicit table comes first, then, unless switched off, `dlsym` over the process and the libraries
//! loaded for the purpose. Some names are bound to wrappers: threads that published code starts are inside from their
//! first instruction, and its thread-local storage is found by us.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};

use jitcast_runtime::WorkerAddr;
use jitcast_runtime::host_name::HostName;
use jitcast_runtime::signature::Signature;

use crate::function_type::FunctionType;
use crate::{spawn, thread_local};

/// The host symbols of a worker.
///
/// ```
/// use jitcast_worker::{HostTable, WorkerOptions};
///
/// extern "C" fn note(value: i64) {
///     println!("published code says {value}");
/// }
///
/// let mut host = HostTable::strict();
/// host.define("note", note as extern "C" fn(i64));
/// let options = WorkerOptions { host, ..WorkerOptions::default() };
/// ```
#[derive(Debug)]
pub struct HostTable {
    defined: HashMap<String, Defined>,
    libraries: Vec<Library>,
    search_process: bool,
}

/// What a name was defined as.
#[derive(Clone, Debug)]
struct Defined {
    address: WorkerAddr,
    /// `None`: whoever defined it vouches for it.
    signature: Option<Signature>,
}

/// A host symbol is called by a signature that is not the one it was defined with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// How published code calls it.
    pub(crate) called: Signature,
    /// What the host says it is.
    pub(crate) defined: Signature,
}

/// A library cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot load the library `{name}`: {why}\n  help: give the name that the dynamic linker knows, as `libstdc++.so.6`, or a path"
)]
pub struct LibraryError {
    /// The name given.
    pub name: String,
    /// What the dynamic linker said.
    pub why: String,
}

/// A handle of dlopen(3), never closed: published code may hold addresses into the library.
#[derive(Debug)]
struct Library(*mut c_void);

// SAFETY: a handle is a key that dlsym(3) accepts from any thread.
unsafe impl Send for Library {}
// SAFETY: as for `Send`; dlsym(3) is MT-Safe.
unsafe impl Sync for Library {}

impl Default for HostTable {
    /// The process's own symbols, those of libm, and nothing else.
    fn default() -> Self {
        let mut table = Self {
            defined: HashMap::new(),
            libraries: Vec::new(),
            search_process: true,
        };
        // Whatever C code needs; a host without libm has no use for it.
        let _ = table.load("libm.so.6");
        table
    }
}

impl HostTable {
    /// The strict mode: a table that binds only what was defined ([`HostTable::define`], [`HostTable::define_address`]).
    pub fn strict() -> Self {
        Self {
            defined: HashMap::new(),
            libraries: Vec::new(),
            search_process: false,
        }
    }

    /// Defines `name` as a function of this process, `log as extern "C" fn(i64)`, before anything that `dlsym` finds. Published
    /// code that is known to call it by another signature cannot be called in this worker ([`LookupError::ImportSignature`]).
    /// That is known of CLIF, and of C where debugging information says it.
    ///
    /// [`LookupError::ImportSignature`]: crate::LookupError::ImportSignature
    pub fn define<F: FunctionType>(&mut self, name: &str, function: F) -> &mut Self {
        let defined = Defined {
            address: function.address(),
            signature: Some(F::signature()),
        };
        self.defined.insert(name.to_owned(), defined);
        self
    }

    /// Defines `name` as what is at `address`, a datum or a function of any type, before anything that `dlsym` finds.
    ///
    /// # Safety
    /// `address` is what published code takes `name` for: a function of the signature it calls, or a datum of
    /// the type it accesses, valid while the worker is attached.
    pub unsafe fn define_address(&mut self, name: &str, address: *const c_void) -> &mut Self {
        let defined = Defined {
            address: WorkerAddr::new(address.addr() as u64),
            signature: None,
        };
        self.defined.insert(name.to_owned(), defined);
        self
    }

    /// Defines `name` as the function at `address`, of a signature that is known as a text: as [`HostTable::define`].
    ///
    /// # Safety
    /// `address` is a function of `signature`, valid while the worker is attached.
    pub unsafe fn define_by_signature(
        &mut self,
        name: &str,
        signature: Signature,
        address: *const c_void,
    ) -> &mut Self {
        let defined = Defined {
            address: WorkerAddr::new(address.addr() as u64),
            signature: Some(signature),
        };
        self.defined.insert(name.to_owned(), defined);
        self
    }

    /// Loads a shared library whose symbols published code may import.
    ///
    /// # Errors
    /// [`LibraryError`] with the dynamic linker's words.
    ///
    /// ```
    /// # use jitcast_worker::HostTable;
    /// let mut host = HostTable::default();
    /// host.load("libm.so.6")?;
    /// assert!(host.resolve("hypot").is_some());
    /// # Ok::<(), jitcast_worker::LibraryError>(())
    /// ```
    pub fn load(&mut self, name: &str) -> Result<&mut Self, LibraryError> {
        let error = |why: String| LibraryError {
            name: name.to_owned(),
            why,
        };
        let path = CString::new(name).map_err(|_| error("the name contains a zero byte".into()))?;
        // SAFETY: `path` is a C string. Loading runs the library's constructors, which is what the caller asks
        // for.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if handle.is_null() {
            return Err(error(dlerror()));
        }
        self.libraries.push(Library(handle));
        Ok(self)
    }

    /// What was defined as `name`. It stands for every version of the host's.
    fn definition(&self, name: &str) -> Option<&Defined> {
        let stem = name.split_once('@').map_or(name, |(stem, _)| stem);
        self.defined.get(name).or_else(|| self.defined.get(stem))
    }

    /// The address of what an import names, if there is one that can be called as the import does.
    pub(crate) fn resolve_import(
        &self,
        host: &HostName<'_>,
    ) -> Result<Option<WorkerAddr>, Mismatch> {
        let defined = self.definition(host.name);
        match (
            &host.signature,
            defined.and_then(|defined| defined.signature.as_ref()),
        ) {
            (Some(called), Some(defined)) if !defined.compatible(called) => Err(Mismatch {
                called: called.clone(),
                defined: defined.clone(),
            }),
            _ => Ok(self.resolve(host.name)),
        }
    }

    /// The address of `name` in this process, if there is one; of `name@VERSION`, that of the version.
    pub fn resolve(&self, name: &str) -> Option<WorkerAddr> {
        if let Some(defined) = self.definition(name) {
            return Some(defined.address);
        }
        // What is ours stands for every version of the host's, too.
        let stem = name.split_once('@').map_or(name, |(stem, _)| stem);
        if stem == "__tls_get_addr" {
            // How published code finds what is its own; of the host's it knows only what was bound.
            let found: extern "C" fn(*const thread_local::Index) -> *mut u8 =
                thread_local::get_addr;
            return Some(WorkerAddr::new(found as *const () as u64));
        }
        if !self.search_process {
            return None;
        }
        if let (Some((stem, version)), None) = (name.split_once('@'), wrapped(stem))
            && stem != spawn::STD_THREAD
        {
            return self.resolve_version(stem, version);
        }
        let name = stem;
        let c_name = CString::new(name).ok()?;
        if name == spawn::STD_THREAD {
            // Where libstdc++ is, so that what it throws can be thrown.
            let found = dlsym(libc::RTLD_DEFAULT, &c_name);
            let ours = spawn::start_std_thread as *const c_void;
            return found.map(|_| WorkerAddr::new(ours.addr() as u64));
        }
        wrapped(name)
            .or_else(|| of_libgcc(name, &c_name))
            .or_else(|| dlsym(libc::RTLD_DEFAULT, &c_name))
            .or_else(|| {
                self.libraries
                    .iter()
                    .find_map(|library| dlsym(library.0, &c_name))
            })
    }
}

impl HostTable {
    fn resolve_version(&self, name: &str, version: &str) -> Option<WorkerAddr> {
        let (name, version) = (CString::new(name).ok()?, CString::new(version).ok()?);
        let handles = core::iter::once(libc::RTLD_DEFAULT);
        let mut handles = handles.chain(self.libraries.iter().map(|library| library.0));
        handles.find_map(|handle| {
            // SAFETY: `handle` is RTLD_DEFAULT or an open handle, and both names are C strings.
            let address = unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) };
            (!address.is_null()).then(|| WorkerAddr::new(address.addr() as u64))
        })
    }
}

fn dlsym(handle: *mut c_void, name: &CStr) -> Option<WorkerAddr> {
    // SAFETY: `handle` is RTLD_DEFAULT or an open handle, `name` a C string.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!address.is_null()).then(|| WorkerAddr::new(address.addr() as u64))
}

fn dlerror() -> String {
    // SAFETY: dlerror(3) returns null or a string that is valid until this thread's next call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: not null, so a C string (see above).
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

unsafe extern "C" {
    fn __cxa_thread_atexit_impl(
        function: *const c_void,
        argument: *mut c_void,
        handle: *mut c_void,
    ) -> c_int;
}

/// What published code gets in place of the host's, so that its threads are inside, or what the host's C library
/// has under another name.
fn wrapped(name: &str) -> Option<WorkerAddr> {
    let address = match name {
        "pthread_create" => spawn::pthread_create as *const c_void,
        "thrd_create" => spawn::thrd_create as *const c_void,
        // Of libstdc++ too, but there is published code that needs no more of it.
        "__cxa_thread_atexit" => __cxa_thread_atexit_impl as *const c_void,
        _ => return None,
    };
    Some(WorkerAddr::new(address.addr() as u64))
}

/// What libgcc keeps for programs that were linked with its static part: it exports them in old versions only,
/// which `dlsym` does not find.
fn of_libgcc(name: &str, c_name: &CStr) -> Option<WorkerAddr> {
    if !["__cpu_model", "__cpu_indicator_init"].contains(&name) {
        return None;
    }
    // SAFETY: C strings. The library is loaded wherever Rust runs; its constructors fill `__cpu_model`.
    let library = unsafe { libc::dlopen(c"libgcc_s.so.1".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return None;
    }
    // SAFETY: an open handle and C strings.
    let address = unsafe { libc::dlvsym(library, c_name.as_ptr(), c"GCC_4.8.0".as_ptr()) };
    (!address.is_null()).then(|| WorkerAddr::new(address.addr() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_libm_and_what_units_rely_on_are_found() {
        let table = HostTable::default();
        for name in [
            "malloc",
            "printf",
            "cos",
            "__cxa_atexit",
            "__cxa_at_quick_exit",
            "__register_atfork",
            "__tls_get_addr",
            "__cpu_model",
        ] {
            assert!(table.resolve(name).is_some(), "{name}");
        }
        assert_eq!(table.resolve("no_such_symbol_anywhere"), None);
        assert_eq!(table.resolve("zero\0byte"), None);
    }

    #[test]
    fn the_explicit_table_wins_and_strict_binds_nothing_else() {
        let mut table = HostTable::strict();
        assert_eq!(table.resolve("malloc"), None);
        // SAFETY: nothing is called through it.
        unsafe { table.define_address("malloc", core::ptr::without_provenance(0x1000)) };
        assert_eq!(table.resolve("malloc"), Some(WorkerAddr::new(0x1000)));
        let versioned = table.resolve("malloc@GLIBC_2.2.5");
        assert_eq!(versioned, Some(WorkerAddr::new(0x1000)));
        assert_eq!(table.resolve("free@GLIBC_2.2.5"), None);
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let error = HostTable::default()
            .load("libnothing-of-the-kind.so")
            .unwrap_err();
        assert!(
            error.to_string().contains("libnothing-of-the-kind.so"),
            "{error}"
        );
    }
}
