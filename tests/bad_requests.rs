//! Requests that no command of ours would send: each is refused with a short message, and what runs goes on.

mod common;

use std::os::unix::net::UnixStream;

use common::serve::Serve;
use common::{remote, role};
use jitcast::compiler::request::{
    self, DecideRequest, Decision, PublishRequest, RequestError, RollbackRequest,
};
use jitcast::compiler::{PublishOptions, SymbolUpdate};
use jitcast::runtime::wire::{self, FrameKind};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

/// What the compiler process answers to a frame of raw bytes.
fn raw(serve: &Serve, kind: FrameKind, payload: &[u8]) -> String {
    let socket = UnixStream::connect(&serve.socket).unwrap();
    wire::send(&socket, kind, payload, &[]).unwrap();
    let frame = wire::receive(&socket, 1 << 20).unwrap();
    assert_eq!(frame.kind, FrameKind::Refused, "{kind:?} {payload:?}");
    String::from_utf8(frame.payload).unwrap()
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, RequestError>) -> String {
    match answer {
        Err(RequestError::Refused(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_request_is_refused() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let good = [0x01, 0x01, b'f'];
    // Lists that claim to be longer than anything, options that are neither yes nor no, and what ends too early.
    let payloads: [&[u8]; 6] = [
        &[],
        &[0xff; 64],
        &good,
        &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[7; 9],
        &[0, 0, 0, 2],
    ];
    for payload in payloads {
        // Which is one to promote a canary without a name.
        let unread = payload != [0, 0, 0, 2];
        let decides = unread.then_some(FrameKind::Decide);
        for kind in [FrameKind::Publish, FrameKind::Rollback]
            .into_iter()
            .chain(decides)
        {
            let text = raw(&serve, kind, payload);
            assert!(text.starts_with("the request cannot be read: "), "{text}");
        }
    }
    assert_eq!(serve.call("f(1)"), "2");
}

#[test]
fn names_without_end_and_names_of_nothing_are_refused_in_few_words() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let generation = serve.status().generation;
    for name in [
        String::new(),
        "\0".into(),
        "\n".repeat(20),
        "x".repeat(10 << 20),
    ] {
        let asked = [
            PublishRequest {
                removals: vec![name.clone()],
                ..PublishRequest::default()
            },
            PublishRequest {
                updates: vec![SymbolUpdate::Quarantine(name.clone())],
                ..PublishRequest::default()
            },
            PublishRequest {
                updates: vec![SymbolUpdate::Restore(name.clone())],
                ..PublishRequest::default()
            },
            PublishRequest {
                removals: vec!["f".into(), name.clone()],
                ..PublishRequest::default()
            },
        ];
        for request in asked {
            let socket = UnixStream::connect(&serve.socket).unwrap();
            let text = refusal(request::publish(&socket, &request));
            assert!(text.len() < 400, "{} bytes: {}", text.len(), &text[..400]);
        }
        for decision in [Decision::Promote, Decision::Abort] {
            let socket = UnixStream::connect(&serve.socket).unwrap();
            let canary = name.clone();
            let text = refusal(request::decide(
                &socket,
                &DecideRequest { canary, decision },
            ));
            assert!(text.len() < 400, "{} bytes: {}", text.len(), &text[..400]);
        }
    }
    assert_eq!(serve.status().generation, generation);
    assert_eq!(serve.call("f(1)"), "2");
}

#[test]
fn rollbacks_to_nowhere_are_refused() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    serve.publish_adds("f", 2);
    for generation in [0, 1, 4, 5, u64::MAX] {
        let socket = UnixStream::connect(&serve.socket).unwrap();
        let (generation, options) = (Some(generation), PublishOptions::default());
        let text = refusal(request::rollback(
            &socket,
            &RollbackRequest {
                generation,
                options,
            },
        ));
        assert!(
            text.contains("cannot be rolled back to") && text.contains("\n  help: "),
            "{text}"
        );
    }
    assert_eq!(serve.call("f(1)"), "3");
}

/// A batch that is refused for one of its parts leaves no trace of the others, in nobody.
#[test]
fn a_batch_with_one_bad_part_does_nothing() {
    let serve = Serve::start(&[]);
    for name in ["f", "g", "h"] {
        serve.publish_adds(name, 1);
    }
    let mut worker = remote::Remote::start(&serve.socket);
    let before = serve.status();
    let bad = [
        PublishRequest {
            removals: vec!["f".into()],
            updates: vec![
                SymbolUpdate::Quarantine("g".into()),
                SymbolUpdate::Restore("h".into()),
            ],
            ..PublishRequest::default()
        },
        PublishRequest {
            removals: vec!["f".into(), "nobody".into()],
            updates: vec![SymbolUpdate::Quarantine("g".into())],
            ..PublishRequest::default()
        },
        // What goes in the same publication cannot be quarantined.
        PublishRequest {
            removals: vec!["f".into()],
            updates: vec![SymbolUpdate::Quarantine("f".into())],
            ..PublishRequest::default()
        },
    ];
    for request in bad {
        let socket = UnixStream::connect(&serve.socket).unwrap();
        let text = refusal(request::publish(&socket, &request));
        assert!(text.contains("\n  help: "), "{text}");
        let after = serve.status();
        assert_eq!(
            (after.units, after.symbols),
            (before.units.clone(), before.symbols.clone())
        );
        assert_eq!(
            (after.generation, after.quarantined),
            (before.generation, vec![])
        );
        assert_eq!(
            ["f", "g", "h"].map(|name| worker.call(name, 1)),
            ["2", "2", "2"]
        );
    }
}
