//! How much memory the control groups of this process leave it.
//!
//! Who takes more than a memory cgroup allows is not refused: the kernel kills somebody in it (cgroups(7), `memory.max`). So whoever
//! can do with less looks first.

use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

/// What is left beside, for everything else that a process takes meanwhile, bytes: an eighth of the limit, within these bounds.
const MARGIN_BYTES: RangeInclusive<u64> = 1 << 20..=32 << 20;

/// What the tightest of the groups leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Left {
    group: String,
    limit_bytes: u64,
    left_bytes: u64,
}

/// Whether the memory cgroups of this process leave it `asked_bytes` for the segment, and a little more for everything else. Where
/// nothing is known of them: yes.
///
/// # Errors
/// `OutOfMemory`, with figures.
pub(super) fn check(asked_bytes: u64) -> io::Result<()> {
    check_beside(asked_bytes, |limit| (limit / 8).clamp(*MARGIN_BYTES.start(), *MARGIN_BYTES.end()))
}

/// Whether they leave it `asked_bytes` for a moment.
///
/// # Errors
/// `OutOfMemory`, with figures.
pub fn check_transient(asked_bytes: u64) -> io::Result<()> {
    check_beside(asked_bytes, |_| 0)
}

fn check_beside(asked_bytes: u64, margin: impl Fn(u64) -> u64) -> io::Result<()> {
    let Ok(own) = std::fs::read_to_string("/proc/self/cgroup") else {
        return Ok(());
    };
    match tightest(Path::new("/sys/fs/cgroup"), &own) {
        Some(left) if left.left_bytes < asked_bytes.saturating_add(margin(left.limit_bytes)) => {
            let Left { group, limit_bytes, left_bytes } = left;
            let margin = margin(limit_bytes);
            Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("the memory cgroup {group} has {left_bytes} of {limit_bytes} bytes left, {asked_bytes} are needed beside {margin}"),
            ))
        }
        _ => Ok(()),
    }
}

/// The group that leaves least, of those that `own`, which has the form of `/proc/self/cgroup`, is in. `mount` is where they are.
fn tightest(mount: &Path, own: &str) -> Option<Left> {
    let groups = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let names: &[&str; 4] = match controllers {
            "" if hierarchy == "0" => &V2,
            _ if controllers.split(',').any(|controller| controller == "memory") => &V1,
            _ => return None,
        };
        // In a container the path may be one of the host's: then the mount is the group itself.
        let inside = Path::new(path.trim_start_matches('/'));
        Some(inside.ancestors().filter_map(|group| left_in(mount, group, names)).min_by_key(|left| left.left_bytes))
    });
    groups.flatten().min_by_key(|left| left.left_bytes)
}

/// Where groups are below the mount, their limit, their usage, and what precedes the names of their statistics.
const V2: [&str; 4] = ["", "memory.max", "memory.current", ""];
const V1: [&str; 4] = ["memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"];

fn left_in(mount: &Path, group: &Path, [below, limit, usage, prefix]: &[&str; 4]) -> Option<Left> {
    let folder = mount.join(below).join(group);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    // `max`, which is no number, is no limit.
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit_bytes, used_bytes) = (number(limit)?, number(usage)?);
    // Pages of files can be had back, if they are no shared memory, which is not counted among these.
    let statistics = read("memory.stat")?;
    let cached = statistics.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        let name = name.strip_prefix(prefix)?;
        matches!(name, "inactive_file" | "active_file").then(|| bytes.parse::<u64>().ok())?
    });
    let left_bytes = limit_bytes.saturating_sub(used_bytes.saturating_sub(cached.sum()));
    Some(Left { group: format!("/{}", group.display()), limit_bytes, left_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as the kernel shows them.
    fn mount(files: &[(&str, &str)]) -> std::path::PathBuf {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mount = std::env::temp_dir().join(format!("jitcast-cgroup-{}-{number}", std::process::id()));
        for (path, text) in files {
            let path = mount.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        mount
    }

    fn found(files: &[(&str, &str)], own: &str) -> Option<(String, u64)> {
        let mount = mount(files);
        let left = tightest(&mount, own);
        std::fs::remove_dir_all(mount).unwrap();
        left.map(|left| (left.group, left.left_bytes))
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let files = [
            ("a/memory.max", "1000\n"),
            ("a/memory.current", "900\n"),
            ("a/memory.stat", "anon 5\nactive_file 50\ninactive_file 7\nshmem 500\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/memory.current", "10\n"),
            ("a/b/memory.stat", "anon 5\n"),
            ("a/b/c/memory.max", "200\n"),
            ("a/b/c/memory.current", "10\n"),
            ("a/b/c/memory.stat", ""),
        ];
        assert_eq!(found(&files, "0::/a/b/c\n"), Some(("/a".into(), 157)));
        assert_eq!(found(&files[3..], "0::/a/b/c\n"), Some(("/a/b/c".into(), 190)));
        assert_eq!(found(&files[3..6], "0::/a/b\n"), None);
    }

    #[test]
    fn the_first_version_has_names_of_its_own_and_containers_see_their_group_as_the_mount() {
        let files = [
            ("memory/memory.limit_in_bytes", "300"),
            ("memory/memory.usage_in_bytes", "400"),
            ("memory/memory.stat", "active_file 1\ntotal_active_file 130\ntotal_inactive_file 0\n"),
        ];
        let own = "5:cpu,cpuacct:/\n4:memory:/docker/0123\n0::/docker/0123\n";
        assert_eq!(found(&files, own), Some(("/".into(), 30)));
        assert_eq!(found(&files, "5:cpu:/\nmemory\n\n"), None);
    }
}
