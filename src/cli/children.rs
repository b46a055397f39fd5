//! The worker processes of `run`: started, listened to, ended.

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use super::Failure;
use super::report::Event;

/// What one of the children did.
#[derive(Debug)]
pub(super) enum News {
    /// It reported.
    Event(usize, Event),
    /// It closed its output: it has ended, or is about to.
    Silent(usize),
}

/// Worker processes. Dropping them ends them.
#[derive(Debug)]
pub(super) struct Children {
    children: Vec<Child>,
    news: Receiver<News>,
}

impl Children {
    /// Starts `count` times this program's `worker` command with `arguments`.
    pub(super) fn start(count: u32, arguments: &[String]) -> Result<Self, Failure> {
        let (sender, news) = mpsc::channel();
        let mut all = Self {
            children: Vec::new(),
            news,
        };
        for index in 0..count as usize {
            let mut child = Command::new("/proc/self/exe")
                .arg0("jitcast")
                .args(arguments)
                .arg(format!("--label=run-{}", index + 1))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|cause| Failure(format!("cannot start a worker process: {cause}")))?;
            let output = child.stdout.take();
            all.children.push(child);
            if let Some(output) = output {
                let sender = sender.clone();
                std::thread::spawn(move || listen(index, output, &sender));
            }
        }
        Ok(all)
    }

    /// The next news, or `None` after `timeout`.
    pub(super) fn next(&self, timeout: Duration) -> Option<News> {
        self.news.recv_timeout(timeout).ok()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.children.len()
    }

    /// The process of child `index`.
    pub(super) fn pid(&self, index: usize) -> u32 {
        self.children[index].id()
    }

    /// Waits for child `index` and says how it ended.
    pub(super) fn end_of(&mut self, index: usize) -> String {
        match self.children[index].wait() {
            Ok(status) => describe(status),
            Err(cause) => format!("lost: {cause}"),
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended already is waited for below; there is nothing to kill then.
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

fn listen(index: usize, output: impl std::io::Read, sender: &Sender<News>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(event) => {
                if sender.send(News::Event(index, event)).is_err() {
                    return;
                }
            }
            // What published code itself prints.
            Err(_) => println!("worker {}: {line}", index + 1),
        }
    }
    // Nobody may be listening any more.
    let _ = sender.send(News::Silent(index));
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
