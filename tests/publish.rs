//! Units: what a publication replaces, removes and refuses.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, clif_unit, object_unit};
use common::object::{Maker, PLUS_ONE};
use common::process::no_forks;
use common::scratch::adds;
use common::{require, role};
use jitcast::compiler::{PublishError, Reclaim};
use jitcast::worker::LookupError;
use units::{HOLDER, Holder, attach, c, call, calls, function, hold, publish, refused, try_call};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(HOLDER, hold)]);
}

/// Functions of one unit, each of which adds a number.
fn several(functions: &[(&str, i64)]) -> String {
    functions
        .iter()
        .map(|(name, bonus)| adds(name, *bonus))
        .collect()
}

#[test]
fn a_unit_replaces_the_one_of_its_name_and_handles_follow() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    let worker = attach(&host);
    host.publish_adds("f", 1);
    let handle = {
        let guard = worker.enter().unwrap();
        function(&worker, &guard, "f").unwrap()
    };
    for bonus in 1..50 {
        let generation = host.publish_adds("f", bonus);
        let guard = worker.enter().unwrap();
        assert_eq!(guard.generation(), generation);
        assert_eq!(handle.call(&guard, 100), 100 + bonus);
    }
    let status = host.compiler.status();
    assert_eq!(
        (status.units.len(), status.symbols.len(), status.kept),
        (1, 1, vec![])
    );
}

#[test]
fn a_symbol_moves_from_one_unit_to_another_of_the_batch() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    let worker = attach(&host);
    publish(
        &host,
        &[
            clif_unit("a", &several(&[("f", 1), ("g", 2)])),
            clif_unit("user", &calls("h", "g", 100)),
        ],
    );
    let (handle, stub) = {
        let guard = worker.enter().unwrap();
        let handle = function(&worker, &guard, "g").unwrap();
        (handle, worker.symbol(&guard, "g").unwrap().stub)
    };
    let taken = refused(&host, &[clif_unit("b", &adds("g", 20))]);
    assert!(
        matches!(&taken, PublishError::Duplicate { other, published: true, .. } if other == "a")
    );
    publish(
        &host,
        &[
            clif_unit("b", &adds("g", 20)),
            clif_unit("a", &adds("f", 10)),
        ],
    );
    let guard = worker.enter().unwrap();
    assert_eq!(handle.call(&guard, 0), 20);
    assert_eq!(worker.symbol(&guard, "g").unwrap().stub, stub);
    assert_eq!(call(&worker, "h", 0), 120);
    let status = host.compiler.status();
    let mover = status.symbols.iter().find(|symbol| symbol.name == "g");
    assert_eq!(mover.unwrap().unit, "b");
}

#[test]
fn a_symbol_that_others_use_does_not_go() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    let worker = attach(&host);
    publish(&host, &[clif_unit("a", &several(&[("f", 1), ("g", 2)]))]);
    for user in ["zoe", "bob"] {
        publish(&host, &[clif_unit(user, &calls(user, "g", 100))]);
    }
    let error = refused(&host, &[clif_unit("a", &adds("f", 10))]);
    let PublishError::StillUsed {
        symbol,
        unit,
        users,
        is_data: false,
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((symbol.as_str(), unit.as_str()), ("g", "a"));
    assert_eq!(users, &["bob", "zoe"]);
    assert!(error.to_string().contains("used by `bob`, `zoe`\n  help: "));
    assert_eq!([call(&worker, "bob", 0), call(&worker, "f", 0)], [102, 1]);
    // One user lets go: the other is still named.
    let error = refused(
        &host,
        &[
            clif_unit("a", &adds("f", 10)),
            clif_unit("bob", &adds("bob", 7)),
        ],
    );
    assert!(matches!(&error, PublishError::StillUsed { users, .. } if users == &["zoe"]));
    publish(
        &host,
        &[
            clif_unit("a", &adds("f", 10)),
            clif_unit("bob", &adds("bob", 7)),
            clif_unit("zoe", &adds("zoe", 8)),
        ],
    );
    assert_eq!(
        ["f", "bob", "zoe"].map(|name| call(&worker, name, 0)),
        [10, 7, 8]
    );
    assert!(matches!(
        try_call(&worker, "g", 0),
        Err(LookupError::NotFound { .. })
    ));
}

#[test]
fn an_unused_symbol_goes_and_comes_alive_again_in_old_handles() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    let worker = attach(&host);
    publish(&host, &[clif_unit("a", &several(&[("f", 1), ("g", 2)]))]);
    let handle = {
        let guard = worker.enter().unwrap();
        function(&worker, &guard, "g").unwrap()
    };
    publish(&host, &[clif_unit("a", &adds("f", 1))]);
    let error = try_call(&worker, "g", 0).unwrap_err();
    assert!(error.to_string().starts_with("`g` is not published"));
    // Others take what it had, then somebody else publishes the name.
    for number in 0..100 {
        let name = format!("other{number}");
        host.publish_adds(&name, 1000 + number);
    }
    publish(&host, &[clif_unit("b", &adds("g", 33))]);
    let guard = worker.enter().unwrap();
    assert_eq!(handle.call(&guard, 0), 33);
    drop(guard);
    publish(&host, &[clif_unit("b", &adds("g", 44))]);
    let guard = worker.enter().unwrap();
    assert_eq!(handle.call(&guard, 0), 44);
}

#[test]
fn a_handle_of_a_removed_function_ends_the_process_with_a_message() {
    let host = Host::sealed();
    publish(&host, &[clif_unit("a", &several(&[("f", 1), ("g", 2)]))]);
    let [mut by_handle, mut by_stub] = [(); 2].map(|()| Holder::start(&host, "g"));
    assert_eq!([by_handle.call("handle"), by_stub.call("stub")], ["3", "3"]);
    publish(&host, &[clif_unit("a", &adds("f", 1))]);
    let message = ["a function was called that is not published any more"];
    by_handle.aborts("handle", &message);
    by_stub.aborts("stub", &message);
}

#[test]
fn a_unit_name_twice_in_a_batch_is_refused() {
    let host = Host::sealed();
    let units = [clif_unit("a", &adds("f", 1)), clif_unit("a", &adds("g", 1))];
    let error = refused(&host, &units);
    assert!(matches!(&error, PublishError::SameUnit { unit } if unit == "a"));
    assert!(matches!(refused(&host, &[]), PublishError::Empty));
}

#[test]
fn a_strong_symbol_has_one_definition() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    let worker = attach(&host);
    let rivals = ["a", "b"].map(|unit| clif_unit(unit, &adds("f", 1)));
    let error = refused(&host, &rivals);
    assert!(
        matches!(&error, PublishError::Duplicate { symbol, unit, other, published: false }
            if (symbol.as_str(), unit.as_str(), other.as_str()) == ("f", "b", "a"))
    );
    publish(&host, &rivals[..1]);
    let error = refused(&host, &rivals[1..]);
    assert!(
        error
            .to_string()
            .contains("by the unit `b` and by the unit `a`, which is published")
    );
    assert_eq!(call(&worker, "f", 0), 1);
}

const WEAK: &str = "__attribute__((weak)) long f(long x) { return x + 5; }
    long (*address(void))(long) { return f; }
    long weak_user(long x) { return f(x); }";

#[test]
fn a_weak_definition_gives_way() {
    if !require::cc() {
        return;
    }
    let strong = clif_unit("strong", &adds("f", 1));
    let weak = c("weak", WEAK);
    for batch in [
        [weak.clone(), strong.clone()],
        [strong.clone(), weak.clone()],
    ] {
        let host = Host::sealed();
        publish(&host, &batch);
        assert_eq!(call(&attach(&host), "f", 0), 1);
    }
    let host = Host::sealed();
    publish(&host, std::slice::from_ref(&strong));
    publish(&host, std::slice::from_ref(&weak));
    let worker = attach(&host);
    assert_eq!(call(&worker, "f", 0), 1);
    let owner = |name: &str| {
        let status = host.compiler.status();
        let symbol = status.symbols.iter().find(|symbol| symbol.name == name);
        symbol.unwrap().unit.clone()
    };
    assert_eq!([owner("f"), owner("weak_user")], ["strong", "weak"]);
    // Without a rival it is as good as any other.
    let alone = Host::sealed();
    publish(&alone, &[weak]);
    assert_eq!(call(&attach(&alone), "weak_user", 0), 5);
}

/// The story: a unit whose weak definition had given way was not counted among the users of the strong one,
/// which could be removed under it.
#[test]
fn a_unit_whose_weak_definition_gave_way_uses_the_strong_one() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let strong = clif_unit("strong", &several(&[("f", 1), ("g", 2)]));
    publish(&host, &[strong]);
    publish(&host, &[c("weak", WEAK)]);
    let error = refused(&host, &[clif_unit("strong", &adds("g", 2))]);
    assert!(matches!(&error, PublishError::StillUsed { users, .. } if users == &["weak"]));
    // Together with its user it may go; then the weak one is published.
    publish(
        &host,
        &[clif_unit("strong", &adds("g", 2)), c("weak", WEAK)],
    );
    assert_eq!(call(&attach(&host), "f", 0), 5);
}

/// The story: nothing told workers that a function had become a datum, and handles kept its old code.
#[test]
fn a_function_that_becomes_a_datum_is_not_called_any_more() {
    let host = Host::sealed();
    let mut function = object_unit("k", Maker::new().function("k", &PLUS_ONE).finish());
    let mut datum = object_unit("k", Maker::new().read_only("k", &[7; 64]).finish());
    for unit in [&mut function, &mut datum] {
        unit.reclaim = Reclaim::Yes;
    }
    publish(&host, std::slice::from_ref(&function));
    let [mut by_handle, mut by_stub] = [(); 2].map(|()| Holder::start(&host, "k"));
    assert_eq!([by_handle.call("handle"), by_stub.call("stub")], ["2", "2"]);
    publish(&host, &[clif_unit("user", &calls("h", "k", 1))]);
    let error = refused(&host, std::slice::from_ref(&datum));
    assert!(matches!(&error, PublishError::KindChanges { users, .. } if users == &["user"]));
    assert_eq!(by_handle.call("handle"), "2");
    publish(&host, &[clif_unit("user", &adds("h", 1))]);
    publish(&host, &[datum]);
    let worker = attach(&host);
    assert!(matches!(
        try_call(&worker, "k", 0),
        Err(LookupError::NotAFunction {
            found: "a datum",
            ..
        })
    ));
    let message = ["a function was called that is not published any more"];
    by_handle.aborts("handle", &message);
    by_stub.aborts("stub", &message);
    let _no_forks = no_forks();
    publish(&host, &[function]);
    assert_eq!(call(&worker, "k", 1), 2);
}

/// The story: a function of another unit whose address was taken for the first time was reported as published.
#[test]
fn a_publication_names_its_own_functions_and_no_others() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    assert_eq!(
        publish(&host, &[clif_unit("a", &adds("f", 1))]).functions,
        ["f"]
    );
    let source = "long f(long); void *taken(void) { return f; }
        int puts(const char *); long says(long x) { return puts(\"\") + x; }";
    let published = publish(&host, &[c("b", source)]);
    assert_eq!(published.functions, ["says", "taken"]);
    assert_eq!(published.imports, ["puts"]);
}
