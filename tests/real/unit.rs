//! A unit in Rust, with a standard library of its own: collections, threads, and panics that it catches itself.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};

thread_local! { static CALLS: std::cell::Cell<i64> = const { std::cell::Cell::new(0) }; }

#[unsafe(no_mangle)]
pub extern "C" fn catches(x: i64) -> i64 {
    CALLS.set(CALLS.get() + 1);
    let caught = panic::catch_unwind(AssertUnwindSafe(|| {
        let map: BTreeMap<i64, String> = (0..10).map(|n| (n, format!("number {n}"))).collect();
        map.get(&x).unwrap_or_else(|| panic!("no {x}")).len() as i64
    }));
    match caught {
        Ok(len) => len,
        Err(payload) => -(payload.downcast_ref::<String>().map_or(0, |text| text.len()) as i64),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn calls(_: i64) -> i64 { CALLS.get() }

#[unsafe(no_mangle)]
pub extern "C" fn threads(x: i64) -> i64 {
    let handles: Vec<_> = (0..4).map(|n| std::thread::spawn(move || { CALLS.set(n); n * x + CALLS.get() })).collect();
    handles.into_iter().map(|handle| handle.join().unwrap()).sum()
}
