//! Connections that were there before anybody tracked any.
//!
//! A namespace without rules tracks nothing. When rules for address translation come, the kernel takes the next packet of a connection that
//! it never saw for the first one of a new connection, and a redirect tears it apart. Told not to pick up what it has not seen begin, it lets
//! such packets pass as they are.

mod entries;

use std::io;

use netns::Inside;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

#[cfg(test)]
pub(crate) use entries::tests::read as read_entries;
pub use entries::{EntriesError, Redirected, forget};

/// `net.netfilter.nf_conntrack_tcp_loose` (Documentation/networking/nf_conntrack-sysctl.rst), below a procfs. Each namespace has its own;
/// whoever opens it gets that of the namespace that the thread is in.
const LOOSE: &str = "sys/net/netfilter/nf_conntrack_tcp_loose";

/// The setting could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error(
    "leave the open connections of the namespace as they are (net.netfilter.nf_conntrack_tcp_loose): {0}"
)]
pub struct Error(#[from] io::Error);

/// Whether TCP connections are tracked only if their beginning is seen; nothing where the kernel tracks nothing yet and has no such setting.
///
/// # Errors
/// See [`Error`].
pub fn is_strict(_: &Inside) -> Result<Option<bool>, Error> {
    match std::fs::read_to_string(std::path::Path::new("/proc").join(LOOSE)) {
        Ok(text) => Ok(Some(text.trim_ascii() == "0")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Lets TCP connections be tracked only if their beginning is seen (`strict`), or also when they are met half-way, which is the kernel's
/// default. `true` when that was otherwise before; `false` also where the kernel tracks nothing yet and has no such setting.
///
/// # Errors
/// See [`Error`].
pub fn set_strict(_: &Inside, strict: bool) -> Result<bool, Error> {
    let wanted: &[u8] = if strict { b"0" } else { b"1" };
    let root =
        rustix::fs::open("/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let set = |root: &rustix::fd::OwnedFd| -> Result<bool, Errno> {
        let open = |flags| rustix::fs::openat(root, LOOSE, flags | OFlags::CLOEXEC, Mode::empty());
        let mut now = [0; 8];
        let len = rustix::io::read(open(OFlags::RDONLY)?, &mut now)?;
        if now[..len].trim_ascii() == wanted {
            return Ok(false);
        }
        rustix::io::write(open(OFlags::WRONLY)?, wanted)?;
        Ok(true)
    };
    match set(&root) {
        Ok(changed) => Ok(changed),
        Err(Errno::NOENT) => Ok(false),
        // A container's /proc/sys can only be read. One that is mounted nowhere is this thread's alone (Linux 5.2).
        Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {
            let procfs = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&procfs)?;
            let own = fsmount(&procfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
            Ok(set(&own)?)
        }
        Err(error) => Err(Error(error.into())),
    }
}

impl From<Errno> for Error {
    fn from(error: Errno) -> Self {
        Self(error.into())
    }
}
