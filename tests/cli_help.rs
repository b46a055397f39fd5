//! What the command says of itself: help with examples, completions for shells, colours where they are wanted.

mod common;

use common::process::{finish, jitcast};
use common::require;

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
