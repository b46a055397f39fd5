//! What the command says of itself: help with examples, completions for shells, colours where they are wanted.

mod common;

use common::host::Host;
use common::process::{finish, jitcast};
use common::require;
use common::scratch::{Scratch, adds};

/// The subcommands that `--help` lists.
fn subcommands() -> Vec<String> {
    let help = finish(&mut jitcast(&["--help"])).succeeded().stdout;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    listed
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .filter(|name| name != "help")
        .collect()
}

#[test]
fn every_command_shows_an_example() {
    let commands = subcommands();
    assert!(commands.len() > 10, "{commands:?}");
    for command in commands {
        let help = finish(&mut jitcast(&[&command, "--help"]))
            .succeeded()
            .stdout;
        let (_, examples) = help
            .split_once("Example")
            .unwrap_or_else(|| panic!("{command} has no example:\n{help}"));
        assert!(
            examples.contains(&format!("jitcast {command}")),
            "{command}:\n{help}"
        );
    }
}

/// As in `jitcast status | head`, when `head` has seen enough.
#[test]
fn what_nobody_reads_on_ends_quietly() {
    use std::os::unix::process::ExitStatusExt;

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let shown = jitcast(&["completions", "bash"])
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .unwrap();
    assert_eq!(shown.status.signal(), Some(libc::SIGPIPE), "{shown:?}");
    assert_eq!(shown.stderr, b"");
}

/// The story: commands ended with a panic and a backtrace where the disk was full.
#[test]
fn where_nothing_can_be_written_commands_say_so() {
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let host = Host::sealed();
    host.publish_adds("f", 1);
    let scratch = Scratch::new();
    let file = scratch.write("g.clif", adds("g", 2));
    let socket = ["--socket", host.socket.as_str()];
    let at = |command, arguments: &[&'static str]| [&[command], &socket[..], arguments].concat();
    let publish = [&["publish"], &socket[..], &[file.as_str()]].concat();
    for command in [
        vec!["completions", "bash"],
        vec!["link", &file],
        at("status", &[]),
        at("status", &["--json"]),
        at("history", &[]),
        at("dis", &["f"]),
        at("why", &["f"]),
        publish,
    ] {
        let mut command = jitcast(&command);
        let ended = command.stdout(full()).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{command:?}: {said}");
        let known = said.starts_with("error: cannot write to standard output: No space left");
        assert!(known && said.contains("\n  help: "), "{command:?}: {said}");
        assert_eq!(said.matches("error: ").count(), 1, "{command:?}: {said}");
    }
    let units = host.compiler.status().units;
    assert_eq!(units.len(), 2, "what was asked for besides is done");
    // Nor does it where errors cannot be told.
    let mut misled = jitcast(&["status", "--socket", "/nowhere/socket"]);
    let ended = misled.stderr(full()).output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
}

#[test]
fn exit_statuses_are_documented_and_true() {
    let help = finish(&mut jitcast(&["--help"])).succeeded().stdout;
    assert!(help.contains("0 done, 1 failed, 2 wrong usage"), "{help}");
    let failed = finish(&mut jitcast(&["status", "--socket", "/nowhere/socket"]));
    assert_eq!(
        (failed.code, failed.stdout.as_str()),
        (Some(1), ""),
        "{failed:#?}"
    );
    let misused = finish(&mut jitcast(&["status", "--wrong"]));
    assert_eq!(
        (misused.code, misused.stdout.as_str()),
        (Some(2), ""),
        "{misused:#?}"
    );
}

#[test]
fn shells_complete_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = finish(&mut jitcast(&["completions", shell]))
            .succeeded()
            .stdout;
        for command in subcommands() {
            assert!(
                script.contains(&command),
                "{shell} does not complete `{command}`"
            );
        }
    }
    if !require::bash() {
        return;
    }
    let script = finish(&mut jitcast(&["completions", "bash"]))
        .succeeded()
        .stdout;
    let ask = "COMP_WORDS=(jitcast sta); COMP_CWORD=1; _jitcast jitcast sta jitcast; echo \"found: ${COMPREPLY[*]}\"";
    let mut bash = std::process::Command::new("bash");
    let answer = finish(bash.args(["-c", &format!("{script}\n{ask}")])).succeeded();
    assert!(answer.stdout.contains("found: status"), "{answer:#?}");
}

#[test]
fn colours_are_there_when_they_are_asked_for() {
    let complains = |args: &[&str], no_color: bool| {
        let mut command = jitcast(args);
        command.env_remove("NO_COLOR");
        if no_color {
            command.env("NO_COLOR", "1");
        }
        finish(&mut command).stderr.contains('\u{1b}')
    };
    assert!(
        complains(&["status", "--wrong", "--color", "always"], true),
        "what is asked for counts"
    );
    assert!(!complains(
        &["status", "--wrong", "--color", "never"],
        false
    ));
    assert!(
        !complains(&["status", "--wrong"], false),
        "this is no terminal"
    );
    let logs = |color: &str| {
        let mut command = jitcast(&["serve", "--socket", "/nowhere/socket", "--color", color]);
        finish(command.env("JITCAST_LOG", "trace")).stderr
    };
    assert!(!logs("never").contains('\u{1b}'));
}
