//! What containers and service managers take away: namespaces, system calls, address space, executable mappings.

mod common;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::process::{Process, await_some, finish, jitcast};
use common::remote::{self, Remote};
use common::require;
use common::role;
use common::scratch::Scratch;
use common::serve::Serve;
use rustix::process::Signal;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

/// A filter of system calls: those that match get EPERM. Each rule: a number, and, for one of its arguments, bits that all have to
/// be set.
fn forbid(
    rules: &[(libc::c_long, Option<(u32, u32)>)],
) -> impl Fn() -> io::Result<()> + Send + Sync + 'static {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let load = |at| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at);
    let answer = |what| statement(libc::BPF_RET | libc::BPF_K, what);
    let forbidden = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut program = Vec::new();
    for (number, bits) in rules {
        program.push(load(0));
        match bits {
            None => program.extend([jump(*number as u32, 0, 1), answer(forbidden)]),
            Some((argument, bits)) => program.extend([
                jump(*number as u32, 0, 4),
                // The low half of the argument.
                load(16 + 8 * argument),
                statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, *bits),
                jump(*bits, 0, 1),
                answer(forbidden),
            ]),
        }
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    move || {
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: takes numbers only.
        let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // SAFETY: the kernel copies the filter, which lives across the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const filter,
            )
        };
        if privileges != 0 || result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Has `command` do `first` before it becomes another program.
fn after(
    mut command: Command,
    first: impl Fn() -> io::Result<()> + Send + Sync + 'static,
) -> Command {
    // SAFETY: what these tests give makes system calls, and allocates nothing.
    unsafe { command.pre_exec(first) };
    command
}

fn worker(socket: &str) -> Command {
    role::command(remote::ROLE, socket)
}

/// Publishes new versions and more code, renews the segment, and sees that the worker has it all; then that its death is noticed.
fn serves(serve: &Serve, mut worker: Remote) {
    let others = serve.status().workers.len();
    for version in 1..40 {
        serve.publish_adds("f", version);
        assert_eq!(worker.call("f", 0), version.to_string());
    }
    let text = "long big(long x) { return x + 7; } char fill[] __attribute__((section(\".text.fill\"), used)) = {[300000] = 1};\n";
    let big = serve.scratch.write(
        "big.c",
        text.replace(
            "section(\".text.fill\")",
            "section(\".text.fill,\\\"ax\\\",@progbits#\")",
        ),
    );
    serve
        .publish(&[&big, "--sig", "big(long) -> long"])
        .succeeded();
    assert_eq!(worker.call("big", 1), "8");
    serve.command("renew", &[]).succeeded();
    serve.publish_adds("f", 41);
    assert_eq!([worker.call("f", 0), worker.call("big", 2)], ["41", "9"]);
    worker.signal(Signal::KILL);
    await_some("the end of the worker", || {
        (serve.status().workers.len() < others).then_some(())
    });
    serve.publish_adds("f", 42);
}

const NO_MEMBARRIER: [(libc::c_long, Option<(u32, u32)>); 2] =
    [(libc::SYS_membarrier, None), (libc::SYS_pidfd_open, None)];

#[test]
fn workers_do_without_membarrier_and_pidfds() {
    if !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 0);
    let worker = Remote::start_as(&mut after(worker(&serve.socket), forbid(&NO_MEMBARRIER)));
    serves(&serve, worker);
}

#[test]
fn compiler_processes_do_without_membarrier_and_pidfds() {
    if !require::cc() {
        return;
    }
    for also_workers in [false, true] {
        let scratch = Scratch::open_to_all();
        let socket = scratch.path("socket");
        let command = jitcast(&["serve", "--socket", &socket]);
        let process = Process::start(&mut after(command, forbid(&NO_MEMBARRIER)));
        let mut serve = Serve::adopt(process, socket, scratch);
        let note = |line: &str| line.contains("membarrier");
        serve
            .process
            .await_line(common::process::Stream::Err, "a note", note);
        serve.publish_adds("f", 0);
        let mut command = worker(&serve.socket);
        if also_workers {
            command = after(command, forbid(&NO_MEMBARRIER));
        }
        serves(&serve, Remote::start_as(&mut command));
    }
}

/// systemd's `MemoryDenyWriteExecute=`: as a filter of system calls, and, since Linux 6.3, as a flag of the process.
#[test]
fn workers_need_no_mapping_to_become_executable() {
    if !require::cc() {
        return;
    }
    let execute = libc::PROT_EXEC as u32;
    let both = execute | libc::PROT_WRITE as u32;
    let filter = forbid(&[
        (libc::SYS_mprotect, Some((2, execute))),
        (libc::SYS_mmap, Some((2, both))),
    ]);
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 0);
    let worker = |first: Box<dyn Fn() -> io::Result<()> + Send + Sync>| {
        Remote::start_as(&mut after(worker(&serve.socket), first))
    };
    serves(&serve, worker(Box::new(filter)));
    let flag = || {
        const PR_SET_MDWE: libc::c_int = 65;
        // SAFETY: takes numbers only.
        match unsafe { libc::prctl(PR_SET_MDWE, 1, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: asks for a number.
    if unsafe { libc::prctl(66, 0, 0, 0, 0) } < 0 {
        return require::skipped("this kernel has no PR_SET_MDWE (Linux 6.3)");
    }
    serves(&serve, worker(Box::new(flag)));
}

/// Whether namespaces can be had with `unshare`; says so if not.
fn can_unshare(flags: &[&str]) -> bool {
    let tried = Command::new("unshare")
        .args(flags)
        .args(["--", "true"])
        .output();
    let can = tried.is_ok_and(|output| output.status.success());
    if !can {
        require::skipped("`unshare` cannot make namespaces here");
    }
    can
}

#[test]
fn workers_attach_across_pid_and_user_namespaces() {
    const FLAGS: [&str; 5] = [
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
    ];
    if !require::cc() || !can_unshare(&FLAGS) {
        return;
    }
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 0);
    let inner = worker(&serve.socket);
    let mut command = Command::new("unshare");
    command
        .args(FLAGS)
        .args(["--kill-child", "--"])
        .arg(inner.get_program())
        .args(inner.get_args());
    command.envs(
        inner
            .get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    serves(&serve, Remote::start_as(&mut command));
}

#[test]
fn a_segment_is_executable_whatever_memfds_are_by_default() {
    const FLAGS: [&str; 3] = ["--pid", "--fork", "--mount-proc"];
    if !require::root() || !can_unshare(&FLAGS) {
        return;
    }
    let scratch = Scratch::new();
    let unit = scratch.write("score.clif", common::scratch::adds("score", 2));
    for value in [1, 2] {
        let mut command = Command::new("unshare");
        command.args(FLAGS).args(["--", "sh", "-c"]);
        command
            .arg("echo $0 > /proc/sys/vm/memfd_noexec && exec \"$@\"")
            .arg(value.to_string());
        command.args([
            env!("CARGO_BIN_EXE_jitcast"),
            "run",
            &unit,
            "--call",
            "score(40)",
            "--workers",
            "2",
        ]);
        let done = finish(&mut command).succeeded();
        assert_eq!(done.stdout.matches(" 42 ").count(), 2, "{done:#?}");
    }
}

#[test]
fn too_little_address_space_is_named_and_a_smaller_window_fits() {
    let limited = |command| {
        let limit = libc::rlimit {
            rlim_cur: 600 << 20,
            rlim_max: 600 << 20,
        };
        after(command, move || {
            // SAFETY: the limit lives across the call.
            match unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    };
    let large = Serve::start(&[]);
    large.publish_adds("f", 1);
    let call = |serve: &Serve| jitcast(&["worker", "--socket", &serve.socket, "--call", "f(1)"]);
    let refused = finish(&mut limited(call(&large)));
    refused.refused(&[
        "cannot reserve 1073741824 bytes of address space",
        "ulimit -v",
        "--window",
    ]);
    let small = Serve::start(&["--window", "64"]);
    small.publish_adds("f", 1);
    let done = finish(&mut limited(call(&small))).succeeded();
    assert!(done.stdout.contains('2'), "{done:#?}");
}
