//! What containers and service managers take away: namespaces, system calls, address space, executable mappings.

mod common;

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::process::{Process, Stream, await_some, finish, jitcast};
use common::remote::{self, Remote};
use common::require;
use common::role;
use common::scratch::Scratch;
use common::serve::Serve;
use common::smaps;
use jitcast::worker::{Endpoint, Worker, WorkerOptions};
use rustix::process::Signal;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play), ("confined", confined)]);
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

/// What older kernels lack.
const NEWER: [(libc::c_long, Option<(u32, u32)>); 3] = [
    (libc::SYS_membarrier, None),
    (libc::SYS_pidfd_open, None),
    (libc::SYS_close_range, None),
];

#[test]
fn workers_do_without_membarrier_and_pidfds() {
    if !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 0);
    let worker = Remote::start_as(&mut after(worker(&serve.socket), forbid(&NEWER)));
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
        let serve = ["serve", "--socket", &socket];
        let command = jitcast(&serve);
        let process = Process::start(&mut after(command, forbid(&NEWER)));
        let mut serve = Serve::adopt(process, socket, scratch);
        for lacking in ["membarrier", "pidfd_open", "close_range"] {
            let note = |line: &str| line.contains(&format!("note: {lacking}(2) is forbidden"));
            serve.process.await_line(Stream::Err, "a note", note);
        }
        serve.publish_adds("f", 0);
        let mut command = worker(&serve.socket);
        if also_workers {
            command = after(command, forbid(&NEWER));
        }
        serves(&serve, Remote::start_as(&mut command));
        // What workers ask for is compiled without them, too.
        let worker = remote::attach(&serve.socket);
        let mut pending = worker.request(&common::scratch::adds("own", 3)).unwrap();
        assert!(pending.wait(Some(common::process::PATIENCE)));
        let guard = worker.enter().unwrap();
        let unit = pending.unit(&guard).unwrap();
        let own = unit.function::<extern "C" fn(i64) -> i64>(&guard, "own");
        assert_eq!(own.unwrap().call(&guard, 4), 7);
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

/// The same of the compiler process, which writes code and executes none; also while it compiles what workers ask for.
#[test]
fn compiler_processes_need_no_mapping_to_become_executable() {
    let execute = libc::PROT_EXEC as u32;
    let both = execute | libc::PROT_WRITE as u32;
    let filter = forbid(&[
        (libc::SYS_mprotect, Some((2, execute))),
        (libc::SYS_mmap, Some((2, both))),
    ]);
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("socket");
    let preloaded = scratch.write("f.clif", common::scratch::adds("f", 0));
    let command = jitcast(&["serve", "--socket", &socket, "--preload", &preloaded]);
    let process = Process::start(&mut after(command, filter));
    let serve = Serve::adopt(process, socket, scratch);
    let worker = remote::attach(&serve.socket);
    assert_eq!(remote::call(&worker, "f", 1), Ok(1));
    serve.publish_adds("f", 2);
    assert_eq!(remote::call(&worker, "f", 1), Ok(3));
    let mut pending = worker.request(&common::scratch::adds("own", 3)).unwrap();
    assert!(pending.wait(Some(common::process::PATIENCE)));
    let guard = worker.enter().unwrap();
    let unit = pending.unit(&guard).unwrap();
    let own = unit.function::<extern "C" fn(i64) -> i64>(&guard, "own");
    assert_eq!(own.unwrap().call(&guard, 4), 7);
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

/// A memory cgroup of a test's own, gone with it.
struct Group(PathBuf);

impl Group {
    /// One of the first version, or of the second, whichever is there.
    fn new(limit_bytes: u64) -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let first = own.lines().find_map(|line| line.split_once(":memory:"));
        let second = own.lines().find_map(|line| line.strip_prefix("0::"));
        let (mount, own, limit) = match (first, second) {
            (Some((_, own)), _) => ("/sys/fs/cgroup/memory", own, "memory.limit_in_bytes"),
            (None, Some(own)) => ("/sys/fs/cgroup", own, "memory.max"),
            _ => return None,
        };
        let name = format!("jitcast-test-{}", std::process::id());
        let folder = Path::new(mount)
            .join(own.trim_start_matches('/'))
            .join(name);
        std::fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        std::fs::write(group.0.join(limit), limit_bytes.to_string()).ok()?;
        Some(group)
    }

    /// A command that runs in it.
    fn command(&self, program: &Command) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
        command
            .arg(self.0.join("cgroup.procs"))
            .arg(program.get_program());
        command.args(program.get_args());
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes may take a moment to be gone.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// The story: the kernel refuses nobody who takes more than a memory cgroup allows, it kills. So the compiler process looks first.
#[test]
fn a_full_memory_cgroup_refuses_the_publication_and_what_ran_goes_on() {
    if !require::cc() {
        return;
    }
    let Some(group) = Group::new(96 << 20) else {
        return require::unavailable("no memory cgroup can be made");
    };
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("socket");
    let process = Process::start(&mut group.command(&jitcast(&["serve", "--socket", &socket])));
    let serve = Serve::adopt(process, socket, scratch);
    serve.publish_adds("f", 1);
    let mut worker = Remote::start(&serve.socket);
    let fill = |number: usize| {
        let text = format!("const char fill{number}[2 << 20] = {{1, {number}}};");
        serve.scratch.object(&format!("fill{number}.o"), &text)
    };
    let files: Vec<_> = (0..60).map(fill).collect();
    let refused = files
        .iter()
        .position(|file| serve.publish(&[file, "--reclaim"]).code != Some(0));
    let refused = refused.expect("60 times 2 MiB do not fit into 96 MiB");
    assert!(refused > 4, "{refused}");
    let again = serve.publish(&[&files[refused]]);
    again.refused(&[
        "segment full",
        "the memory cgroup /",
        "bytes left",
        "what was published goes on",
    ]);
    assert_eq!(worker.call("f", 1), "2");
    serve.publish_adds("f", 2);
    assert_eq!(worker.call("f", 1), "3");
    // There is room again when something goes.
    serve.command("remove", &["fill0", "fill1"]).succeeded();
    serve.publish(&[&files[refused]]).succeeded();
    assert_eq!(worker.call("f", 2), "4");
}

/// The role: connects as root, then sees an empty folder as the whole file system, becomes a user that owns nothing, and attaches by
/// the connection that it has.
fn confined(target: &str) {
    let (socket, empty) = target.split_once(' ').unwrap();
    let connected = std::os::unix::net::UnixStream::connect(socket).unwrap();
    std::os::unix::fs::chroot(empty).unwrap();
    std::env::set_current_dir("/").unwrap();
    let id = common::process::NOBODY;
    // SAFETY: takes numbers only; of the harness's threads none changes its user.
    assert_eq!(unsafe { libc::setgroups(0, std::ptr::null()) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setresgid(id, id, id) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setresuid(id, id, id) }, 0);
    assert!(std::os::unix::net::UnixStream::connect(socket).is_err());
    // It trusts root's compiler process.
    let worker = Worker::attach(Endpoint::Fd(connected.into()), WorkerOptions::default());
    let worker = worker.unwrap_or_else(|error| panic!("{error}"));
    role::report(worker.stats().base.get());
    while let Some(line) = role::next_line() {
        let words: Vec<_> = line.split(' ').collect();
        let ["call", name, argument] = words[..] else {
            panic!("unknown command `{line}`");
        };
        let result = remote::call(&worker, name, argument.parse().unwrap());
        role::report(result.map_or_else(|error| error, |value| value.to_string()));
    }
}

#[test]
fn a_worker_without_files_and_rights_goes_on_by_the_socket_that_it_has() {
    if !require::cc() || !require::root() {
        return;
    }
    // Rights are those of who has connected.
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 0);
    let empty = serve.scratch.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let target = format!("{} {empty}", serve.socket);
    serves(
        &serve,
        Remote::start_as(&mut role::command("confined", &target)),
    );
}

/// Where no more memory is promised than there is (`vm.overcommit_memory=2`), private mappings are charged at once that can be
/// written. Of the window that is only what the worker has grown its private area to, whatever the window's length.
#[test]
fn a_worker_is_charged_for_its_private_data_and_for_nothing_else() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let worker = remote::attach(&serve.socket);
    assert_eq!(remote::call(&worker, "f", 1), Ok(2));
    let window = smaps::of_window(&worker);
    let writable = window
        .iter()
        .filter(|mapping| mapping.permissions.starts_with("rw-p"));
    let charged: u64 = writable.map(|mapping| mapping.end - mapping.start).sum();
    // Two kinds of cells and data: a granule each, at the most.
    assert!((1..=3 * 65536).contains(&charged), "{charged} bytes");
}
