//! Settings below `/proc/sys` of the namespace that the calling thread is in.

use std::io;

use netns::Inside;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The longest value that is read, in bytes.
const MAX_BYTES: usize = 4096;

/// The value of a setting, such as `net/ipv4/ip_forward`; absent where the kernel has none of that name.
///
/// # Errors
/// It cannot be read.
pub fn read(_: &Inside, name: &str) -> io::Result<Option<String>> {
    match read_below(&procfs()?, name) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sets it. Whether it had another value; nothing is done, and `false`, where the kernel has none of that name.
///
/// # Errors
/// It cannot be read or written.
pub fn write(_: &Inside, name: &str, value: &str) -> io::Result<bool> {
    match write_below(&procfs()?, name, value) {
        Ok(changed) => Ok(changed),
        Err(Errno::NOENT) => Ok(false),
        // A container's /proc/sys can only be read. One that is mounted nowhere is this thread's alone (Linux 5.2).
        Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {
            let procfs = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&procfs)?;
            let own = fsmount(&procfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
            Ok(write_below(&own, name, value)?)
        }
        Err(error) => Err(error.into()),
    }
}

fn procfs() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn read_below(procfs: &OwnedFd, name: &str) -> Result<String, Errno> {
    let file = open(procfs, name, OFlags::RDONLY)?;
    let mut value = vec![0; MAX_BYTES];
    let length = rustix::io::read(&file, &mut value)?;
    Ok(String::from_utf8_lossy(value[..length].trim_ascii()).into_owned())
}

fn write_below(procfs: &OwnedFd, name: &str, value: &str) -> Result<bool, Errno> {
    if read_below(procfs, name)? == value {
        return Ok(false);
    }
    rustix::io::write(open(procfs, name, OFlags::WRONLY)?, value.as_bytes())?;
    Ok(true)
}

/// Whoever opens it gets that of the namespace that the thread is in.
fn open(procfs: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(procfs, format!("sys/{name}"), flags | OFlags::CLOEXEC, Mode::empty())
}
