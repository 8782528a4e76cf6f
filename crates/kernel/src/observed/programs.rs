//! BPF programs of a pod's control group: what is translated in connect(2) never comes to the rules as the application meant it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::Path;

use conflicts::{BpfProgram, LookedAt};
use rustix::fs::{AtFlags, Mode, OFlags};

use super::PodProcesses;

/// Where version 2 of control groups is mounted, alone or beside those of version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Processes whose view of their group is tried.
const MOST_PROCESSES: usize = 8;
/// `CGROUP2_SUPER_MAGIC` (linux/magic.h).
const CGROUP2: i64 = 0x6367_7270;
/// `BPF_PROG_QUERY`, and `BPF_F_QUERY_EFFECTIVE`: also programs of the groups above (linux/bpf.h).
const PROG_QUERY: i64 = 16;
const EFFECTIVE: u32 = 1;
/// `BPF_CGROUP_*`: where programs run that translate what applications connect and send to.
const HOOKS: [(u32, &str); 4] =
    [(10, "cgroup/connect4"), (11, "cgroup/connect6"), (14, "cgroup/sendmsg4"), (15, "cgroup/sendmsg6")];
/// Programs of a hook that are told.
const MOST: usize = 64;

/// The beginning of `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    /// Where the kernel may write of programs of interfaces, whatever the length that it is told.
    rest: [u64; 4],
}

/// Those on connect(2) and sendmsg(2). Who may not ask, or cannot see the group, has not looked.
pub(super) fn of_control_groups(processes: &PodProcesses, proc_root: &Path) -> LookedAt<Vec<BpfProgram>> {
    let Some(group) = &processes.control_group else {
        return LookedAt::Not("BPF programs: no control group of the pod is known".to_owned());
    };
    let directory = match open(processes, group, proc_root) {
        Ok(directory) => directory,
        Err(error) => {
            return LookedAt::Not(format!(
                "BPF programs: open the control group {}: {error}",
                group.display()
            ));
        }
    };
    let mut found = Vec::new();
    for (hook, name) in HOOKS {
        // Descriptors are not negative.
        let target = directory.as_raw_fd().cast_unsigned();
        match query(target, hook, EFFECTIVE) {
            Ok(ids) => found.extend(ids.into_iter().map(|id| BpfProgram {
                attached: name.to_owned(),
                object: group.display().to_string(),
                name: String::new(),
                id,
            })),
            Err(error) => return LookedAt::Not(format!("BPF programs: ask for those at {name}: {error}")),
        }
    }
    LookedAt::Found(found)
}

/// The directory of a group. From a container, which sees others' groups as `/../…`, no path leads there: a process of the pod has its group as the
/// root of what is mounted in its own container.
fn open(processes: &PodProcesses, group: &Path, proc_root: &Path) -> std::io::Result<File> {
    let below = group.strip_prefix("/").unwrap_or(group);
    let is_here = !below.starts_with("..");
    let here = MOUNTS.iter().filter(|_| is_here).map(|mount| Path::new(mount).join(below));
    let pids = processes.pids().take(MOST_PROCESSES);
    let there = pids.flat_map(|pid| {
        let root = proc_root.join(format!("{pid}/root"));
        MOUNTS.map(|mount| root.join(mount.trim_start_matches('/')))
    });
    let mut first = None;
    let candidates = here.map(|path| (path, false)).chain(there.map(|path| (path, true)));
    for (path, is_its_view) in candidates {
        match open_group(&path, is_its_view) {
            Ok(directory) => return Ok(directory),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| ErrorKind::NotFound.into()))
}

/// `is_its_view`: as a container sees it. Only what is not the root of all has the file, and that would be anybody's.
fn open_group(path: &Path, is_its_view: bool) -> std::io::Result<File> {
    // A pod may have put anything there. What is no directory is not opened, so that nothing waits for it.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let directory = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let is_of_version_2 = rustix::fs::fstatfs(&directory)?.f_type == CGROUP2;
    let is_a_groups =
        !is_its_view || rustix::fs::statat(&directory, "cgroup.events", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if is_of_version_2 && is_a_groups { Ok(directory) } else { Err(ErrorKind::NotFound.into()) }
}

/// The numbers of the programs at a hook of a control group (its descriptor) or an interface (its number).
#[allow(unsafe_code)]
pub(super) fn query(target: u32, hook: u32, flags: u32) -> std::io::Result<Vec<u32>> {
    use std::ffi::c_long;
    /// The number of bpf(2).
    #[cfg(target_arch = "x86_64")]
    const BPF: c_long = 321;
    #[cfg(not(target_arch = "x86_64"))]
    const BPF: c_long = 280;
    unsafe extern "C" {
        // rustix has no bpf(2).
        fn syscall(number: c_long, ...) -> c_long;
    }
    let mut ids = [0u32; MOST];
    let mut query = Query {
        target,
        attach_type: hook,
        flags,
        ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: the kernel reads the structure of the length that is told, writes numbers of programs to `ids`, at most as many as it has room for, and
    // their count to the structure. Both live through the call.
    let result = unsafe { syscall(BPF, PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        // There are more than are told.
        let full = rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NOSPC);
        return if full { Ok(ids.to_vec()) } else { Err(error) };
    }
    Ok(ids.into_iter().take(query.count as usize).collect())
}

#[cfg(test)]
mod tests;
