//! A file system view of their own for the programs, and the user namespace that they must be in.
//!
//! The programs do two things with the host's file system that must not slow a pod's start: the owner match looks user names up
//! (on some nodes in a network directory that takes half a minute to fail), and the legacy variant locks `/run/xtables.lock`,
//! which a busy host's own rules keep taken. In a private mount namespace both files are others.

use std::ffi::c_void;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, open, stat};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const NSSWITCH: &str = "/etc/nsswitch.conf";
/// Where iptables before 1.8.6 always, and later versions by default, have their lock.
const XTABLES_LOCK: &str = "/run/xtables.lock";
/// Where a file system is mounted while the lock is made. Nothing is read below it meanwhile.
const COVERED: &str = "/proc";
const TMPFS_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// What could be arranged.
#[derive(Debug, Default)]
pub(super) struct PrivateView {
    /// What could not, for the log.
    pub(super) warnings: Vec<String>,
    /// Whether the legacy lock is ours alone.
    pub(super) own_lock: bool,
}

/// Moves the calling thread, which must be one to throw away, into a private mount namespace and hides the files there.
///
/// The lock file is a new one for each call, so nobody waits for it: the work in one namespace is put in sequence before, and
/// what other programs lock on the host are the host's rules.
pub(super) fn hide_host_files(lock: bool) -> PrivateView {
    let mut view = PrivateView::default();
    if let Err(e) = separate() {
        view.warnings.push(format!(
            "no private mount namespace for iptables ({e}): user names may be looked up, and iptables before 1.8.6 waits for {XTABLES_LOCK}"
        ));
        return view;
    }
    if let Err(e) = hide_nsswitch() {
        view.warnings
            .push(format!("cannot hide {NSSWITCH} from iptables ({e}): user names may be looked up"));
    }
    if lock {
        match replace_lock() {
            Ok(()) => view.own_lock = true,
            Err(e) => {
                view.warnings.push(format!(
                    "cannot put another file over {XTABLES_LOCK} ({e}): iptables before 1.8.6 waits for it"
                ));
            }
        }
    }
    view
}

#[allow(unsafe_code)]
fn separate() -> io::Result<()> {
    // SAFETY: the flag concerns mounts and the working directory only; file descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    // Nothing that is mounted from here on may reach the host.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .or_else(|_| mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC))?;
    Ok(())
}

fn hide_nsswitch() -> io::Result<()> {
    match mount_bind("/dev/null", NSSWITCH) {
        Ok(()) => {}
        // Without the file libc looks into /etc/passwd alone, which is as good.
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    }
    Ok(mount_remount(NSSWITCH, MountFlags::BIND | MountFlags::RDONLY, c"")?)
}

fn replace_lock() -> io::Result<()> {
    let only_root = Mode::RUSR | Mode::WUSR;
    // As iptables itself does; without the file there is nothing to mount over.
    drop(open(XTABLES_LOCK, OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC, only_root)?);
    // Only a file with a name can be mounted, and a kill must leave none on the host. So the file is in a file system in memory
    // that only this mount namespace has and that ends with it. For a moment that covers a directory which is there for sure.
    mount(c"none", COVERED, c"tmpfs", TMPFS_FLAGS, c"size=4k,nr_inodes=2,mode=755")?;
    let mounted = bind_new_file();
    // The mount of the file keeps the file system.
    unmount(COVERED, UnmountFlags::DETACH)?;
    Ok(mounted?)
}

fn bind_new_file() -> Result<(), Errno> {
    let file = format!("{COVERED}/lock");
    // The root of another user namespace must be able to open it. Nobody else sees it.
    let everybody = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    drop(open(&file, OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC, everybody)?);
    mount_bind(&file, XTABLES_LOCK)
}

/// The user namespace that owns the network namespace of the calling thread, if it is not the caller's own.
///
/// The kernel takes an owner match only from a process of that user namespace (`owner_check` in `net/netfilter/xt_owner.c`), as
/// the user ids in it are that namespace's. A pod with `hostUsers: false` has one.
pub(super) fn foreign_user_namespace() -> Option<OwnedFd> {
    let net = open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let owner = owner_of(&net).ok()?;
    let (theirs, ours) = (fstat(&owner).ok()?, stat("/proc/self/ns/user").ok()?);
    ((theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)).then_some(owner)
}

/// `NS_GET_USERNS`, `ioctl_ns(2)`: `_IO(0xb7, 0x1)`. Since Linux 4.9.
struct GetOwner;

#[allow(unsafe_code)]
fn owner_of(namespace: &OwnedFd) -> Result<OwnedFd, Errno> {
    // SAFETY: NS_GET_USERNS takes no argument and touches no memory, and the descriptor is that of a namespace.
    unsafe { ioctl(namespace, GetOwner) }
}

// SAFETY: the request takes no argument, so the null pointer is never followed, and answers by its return value, a new
// descriptor that nobody else knows.
#[allow(unsafe_code)]
unsafe impl Ioctl for GetOwner {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xb7, 0x1)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<OwnedFd, Errno> {
        // SAFETY: a successful answer is a new open descriptor, with close-on-exec set.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}
