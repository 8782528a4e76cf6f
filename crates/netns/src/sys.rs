//! The questions to the kernel.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, Stat, fstat, fstatfs, open, stat};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::{NetnsId, OF_THIS_THREAD, OpenCause};

/// `NSFS_MAGIC`, `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The `CLONE_NEW*` flags of `linux/sched.h` with the names that `lsns(8)` uses.
const KINDS: [(i32, &str); 8] = [
    (0x0000_0080, "time"),
    (0x0002_0000, "mount"),
    (0x0200_0000, "cgroup"),
    (0x0400_0000, "uts"),
    (0x0800_0000, "ipc"),
    (0x1000_0000, "user"),
    (0x2000_0000, "pid"),
    (CLONE_NEWNET, "network"),
];
const CLONE_NEWNET: i32 = 0x4000_0000;

/// A question about a namespace, `ioctl_ns(2)`: `_IO(0xb7, NUMBER)`. The answer is the return value.
struct Question<const NUMBER: u8>;

/// `NS_GET_USERNS`: a descriptor of the user namespace that a namespace belongs to. Since Linux 4.9.
type GetOwner = Question<0x1>;
/// `NS_GET_PARENT`: a descriptor of the user namespace that a user namespace was made in. Since Linux 4.9.
type GetParent = Question<0x2>;
/// `NS_GET_NSTYPE`. Since Linux 4.11.
type GetKind = Question<0x3>;

/// A user namespace.
#[derive(Debug)]
pub(crate) struct UserNs {
    fd: OwnedFd,
    id: UserNsId,
}

/// Device and inode number in nsfs.
pub(crate) type UserNsId = (u64, u64);

/// Opens `path` and makes sure that it is a network namespace.
pub(crate) fn open_namespace(path: &Path) -> Result<(OwnedFd, NetnsId), OpenCause> {
    // NONBLOCK: a path that is a pipe must give an error, not wait for a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = open(path, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT | Errno::NOTDIR => OpenCause::Missing,
        Errno::ACCESS | Errno::PERM => OpenCause::Denied,
        e => OpenCause::Io(e.into()),
    })?;
    let id = identify(&fd)?;
    Ok((fd, id))
}

/// Which network namespace an open file is.
pub(crate) fn identify(fd: &OwnedFd) -> Result<NetnsId, OpenCause> {
    let magic = magic_of(fd).map_err(OpenCause::Io)?;
    if magic != NSFS_MAGIC && magic != PROC_SUPER_MAGIC as u64 {
        return Err(OpenCause::NotANamespace { filesystem: filesystem_name(magic) });
    }
    match kind_of(fd) {
        Ok(CLONE_NEWNET) => {}
        Ok(other) => return Err(OpenCause::OtherKind { kind: kind_name(other) }),
        // procfs has more files than namespaces, and nsfs may one day have other kinds of files.
        Err(Errno::NOTTY | Errno::INVAL) => {
            return Err(OpenCause::NotANamespace { filesystem: filesystem_name(magic) });
        }
        Err(e) => return Err(OpenCause::Io(e.into())),
    }
    fstat(fd).map(|s| id_from(&s)).map_err(|e| OpenCause::Io(e.into()))
}

/// The network namespace of the calling thread.
pub(crate) fn id_of_this_thread() -> io::Result<NetnsId> {
    id_at(Path::new(OF_THIS_THREAD))
}

/// The device and number of what is there, whatever it is.
pub(crate) fn id_at(path: &Path) -> io::Result<NetnsId> {
    Ok(id_from(&stat(path)?))
}

/// Moves the calling thread, which must be one to throw away, to a new network namespace.
#[allow(unsafe_code)]
pub(crate) fn move_to_new() -> io::Result<()> {
    // SAFETY: only the file descriptor table may not be unshared behind the standard library's back.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// Takes one byte of a file for an open file description; `false` if another one has it (`F_OFD_SETLK`, since Linux 3.15).
#[allow(unsafe_code)]
pub(crate) fn lock_byte(file: &OwnedFd, offset: u64) -> io::Result<bool> {
    // SAFETY: the structure is plain numbers, for which zeros are values.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // The kernel numbers namespaces with 32 bits.
    lock.l_start = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    lock.l_len = 1;
    // SAFETY: the descriptor is open, and the kernel reads the structure during the call only.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => match Errno::from_io_error(&io::Error::last_os_error()) {
            Some(Errno::AGAIN | Errno::ACCESS | Errno::INTR) => Ok(false),
            _ => Err(io::Error::last_os_error()),
        },
        _ => Ok(true),
    }
}

// The widths of these fields differ between architectures; the values are non-negative and fit.
#[allow(clippy::unnecessary_cast)]
fn id_from(stat: &Stat) -> NetnsId {
    NetnsId { dev: stat.st_dev as u64, ino: stat.st_ino as u64 }
}

// As above: signed on some architectures, and magic numbers have 32 bits.
fn magic_of(fd: &OwnedFd) -> io::Result<u64> {
    Ok(fstatfs(fd)?.f_type as u64 & 0xffff_ffff)
}

fn filesystem_name(magic: u64) -> String {
    // Magic numbers of `linux/magic.h`: those on which a mistaken path or a /run/netns file without its mount lies.
    match magic {
        NSFS_MAGIC => "nsfs".to_owned(),
        0x9fa0 => "procfs".to_owned(),
        0x0102_1994 => "tmpfs".to_owned(),
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        0x6265_6572 => "sysfs".to_owned(),
        other => format!("an unexpected file system (magic {other:#x})"),
    }
}

fn kind_name(flag: i32) -> &'static str {
    KINDS.iter().find(|(f, _)| *f == flag).map_or("unknown", |(_, name)| name)
}

fn kind_of(fd: impl AsFd) -> Result<i32, Errno> {
    ask(fd, GetKind {})
}

// === impl UserNs ===

impl UserNs {
    /// The one that a network namespace belongs to: whoever is root in it may do everything in the network namespace.
    pub(crate) fn owner_of(netns: impl AsFd) -> Result<Self, Errno> {
        Self::answered(ask(netns, GetOwner {})?)
    }

    /// The one in which this one was made. `EPERM` when that is no descendant of the caller's.
    pub(crate) fn parent(&self) -> Result<Self, Errno> {
        Self::answered(ask(&self.fd, GetParent {})?)
    }

    pub(crate) fn id(&self) -> UserNsId {
        self.id
    }

    fn answered(fd: i32) -> Result<Self, Errno> {
        // SAFETY: the kernel has just made this descriptor for the caller, and nobody else knows it.
        #[allow(unsafe_code)]
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let id = fstat(&fd).map(|stat| id_from(&stat))?;
        Ok(Self { fd, id: (id.dev, id.ino) })
    }
}

#[allow(unsafe_code)]
fn ask<const NUMBER: u8>(fd: impl AsFd, question: Question<NUMBER>) -> Result<i32, Errno> {
    // SAFETY: the requests take no argument and touch no memory; on a file that is no namespace the kernel, or the file's own ioctl handler,
    // which knows no request of type 0xb7, refuses them.
    unsafe { ioctl(fd, question) }
}

// SAFETY: the requests take no argument, so the null pointer is never followed, and answer by their return value only.
#[allow(unsafe_code)]
unsafe impl<const NUMBER: u8> Ioctl for Question<NUMBER> {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xb7, NUMBER)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<i32, Errno> {
        Ok(out)
    }
}
