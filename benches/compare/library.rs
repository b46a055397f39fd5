//! Shared libraries, as people load code today: made by `ld -shared`, opened by dlopen(3).

use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use tempfile::TempDir;

use crate::{peers, shapes};

/// The type of most functions here.
pub(crate) type Adds = extern "C" fn(i64) -> i64;

/// An open library; closed when dropped.
#[derive(Debug)]
pub(crate) struct Library(NonNull<c_void>);

impl Library {
    /// Opens it, and binds all that it asks for.
    pub(crate) fn open(path: &CStr) -> Self {
        // SAFETY: the path is a string, and the libraries of this bench run nothing when they are opened.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        Self(NonNull::new(library).unwrap_or_else(|| panic!("dlopen of {path:?} failed")))
    }

    /// The address of what it exports by `name`.
    pub(crate) fn address(&self, name: &CStr) -> *const () {
        // SAFETY: the library is open, and the name a string.
        let found = unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) };
        assert!(!found.is_null(), "no {name:?}");
        found.cast()
    }

    pub(crate) fn adds(&self, name: &CStr) -> Adds {
        adds_at(self.address(name))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: it is open, and its functions are not called any more.
        unsafe { libc::dlclose(self.0.as_ptr()) };
    }
}

/// The function at `address`.
pub(crate) fn adds_at(address: *const ()) -> Adds {
    // SAFETY: callers pass addresses of functions of this type that stay as long as they are called.
    unsafe { std::mem::transmute::<*const (), Adds>(address) }
}

/// A folder of libraries, each with a function of its own.
#[derive(Debug)]
pub(crate) struct Libraries {
    folder: TempDir,
}

/// What the function adds in the library that the others are made of.
const BONUS: i32 = 0x5162_7384;

impl Libraries {
    /// Makes `count` of them: `adds` of number n adds 1 + n % 2.
    pub(crate) fn make(count: u64) -> Result<Self, String> {
        let made = Self::empty();
        let object = made.folder.path().join("adds.o");
        std::fs::write(&object, shapes::adds(BONUS, 0)).unwrap();
        let library = made.folder.path().join("adds.so");
        peers::ld_shared(&library, &[object])?;
        let bytes = std::fs::read(&library).unwrap();
        let pattern = BONUS.to_le_bytes();
        let at = bytes.windows(4).position(|window| window == pattern);
        let at = at.ok_or("ld changed the code")?;
        for number in 0..count {
            let mut own = bytes.clone();
            own[at..at + 4].copy_from_slice(&bonus(number).to_le_bytes());
            std::fs::write(path(made.folder.path(), number), own).unwrap();
        }
        Ok(made)
    }

    /// A folder for libraries to come.
    pub(crate) fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// What version `number` of a function adds.
pub(crate) fn bonus(number: u64) -> i32 {
    1 + (number % 2) as i32
}

/// Where library `number` lies in `folder`.
pub(crate) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("lib{number}.so"))
}

/// The same for dlopen(3).
pub(crate) fn c_path(folder: &Path, number: u64) -> CString {
    CString::new(path(folder, number).into_os_string().into_encoded_bytes()).unwrap()
}
