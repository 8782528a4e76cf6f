//! Files whose content is believed: a pod's facts, a kubeconfig with what it names, records of what was done, options. Who can write one of
//! them decides which pods are captured, or which API server is asked. So each is opened once, what was opened is looked at, and it is read
//! only if it is a regular file that nobody can write but root and the user of this process. The same goes for the directory that it is in,
//! because whoever can write there can put another file under the name. Files of our own that are read so are written here, too.

use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, openat, readlinkat};
use rustix::io::Errno;

/// What a path's last part may be. The parts before it may be links in any case, such as `/var/run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// A file only: nobody makes links in the run directory.
    Refused,
    /// A link to a file too. Kubernetes mounts tokens, certificates and ConfigMaps as links.
    Followed,
}

/// A file that is not believed, or cannot be read. The text says which, why and what helps.
#[derive(Debug, thiserror::Error)]
#[error("read {}: {problem}", path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub problem: Distrust,
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// The system refused.
    #[error("{0}")]
    Io(io::Error),
    /// A directory, a pipe, a device; or a link where there are none.
    #[error("not a regular file, so it is not used; find out who made it, then remove it")]
    NotAFile,
    /// Another user can write it at any time.
    #[error(
        "{what} belongs to user {owner}, and only files of root{} are trusted; find out who made it, then remove it or `chown 0:0` it",
        or_own(*.own)
    )]
    Foreign {
        /// What.
        what: Untrusted,
        /// Whose it is.
        owner: u32,
        /// The user of this process.
        own: u32,
    },
    /// Its mode lets others write it.
    #[error(
        "{what} can be written by {by} (mode {mode:04o}), so it is not trusted; check its content, then `chmod go-w` it"
    )]
    Writable {
        /// What.
        what: Untrusted,
        /// Who.
        by: Writers,
        /// Its mode.
        mode: u32,
    },
    /// More than is read.
    #[error("larger than {}, the limit; replace it", size(*.0))]
    TooLarge(u64),
}

/// What cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Untrusted {
    /// The file.
    It,
    /// The directory that it is in.
    Directory(PathBuf),
}

/// Who can write something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// A group that is not root's.
    Group(u32),
    /// All users.
    All,
}

/// Reads a file of at most `max` bytes.
///
/// # Errors
/// It is not there, not believed, or larger.
pub fn read(path: &Path, links: Links, max: usize) -> Result<Vec<u8>, Error> {
    let file = open(path, links)?;
    let failed = |problem| Error { path: path.to_owned(), problem };
    let mut bytes = Vec::new();
    let max = max as u64;
    file.take(max + 1).read_to_end(&mut bytes).map_err(|cause| failed(Distrust::Io(cause)))?;
    if bytes.len() as u64 > max { Err(failed(Distrust::TooLarge(max))) } else { Ok(bytes) }
}

/// Opens a file for reading. Does not wait for the other end of a pipe.
///
/// # Errors
/// It is not there, or not believed.
pub fn open(path: &Path, links: Links) -> Result<File, Error> {
    try_open(path, links).map_err(|problem| Error { path: path.to_owned(), problem })
}

fn try_open(path: &Path, links: Links) -> Result<File, Distrust> {
    let Some(name) = path.file_name() else { return Err(Distrust::NotAFile) };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = openat(CWD, parent, flags, Mode::empty())?;
    if links == Links::Followed && is_in_volume(&dir, name) {
        dir = openat(&dir, VOLUME_DATA, flags, Mode::empty())?;
    }
    judge(&fstat(&dir)?, || Untrusted::Directory(parent.to_owned()))?;
    let follow = if links == Links::Refused { OFlags::NOFOLLOW } else { OFlags::empty() };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | follow;
    let file = match openat(&dir, name, flags, Mode::empty()) {
        // a link where there are none, a socket
        Err(Errno::LOOP | Errno::NXIO) => return Err(Distrust::NotAFile),
        file => file?,
    };
    let stat = fstat(&file)?;
    if stat.st_mode & S_IFMT != S_IFREG {
        return Err(Distrust::NotAFile);
    }
    judge(&stat, || Untrusted::It)?;
    Ok(file.into())
}

/// The link in a volume of kubelet's to the directory with its files (Kubernetes `pkg/volume/util`, `AtomicWriter`).
const VOLUME_DATA: &str = "..data";

/// Whether a name is one of a ConfigMap or another volume that kubelet writes. All users may write to the directory of the mount, which is in
/// nobody's reach but the container's, and its files are in one that is root's alone.
fn is_in_volume(dir: &OwnedFd, name: &OsStr) -> bool {
    let to = readlinkat(dir, name, Vec::new()).ok();
    to.is_some_and(|to| Path::new(OsStr::from_bytes(to.as_bytes())) == Path::new(VOLUME_DATA).join(name))
}

/// Looks at a directory as [`open`] does at that of a file; one that is not there is nobody's.
///
/// # Errors
/// It is not believed, or cannot be looked at.
pub fn check_directory(path: &Path) -> Result<(), Error> {
    let check = || -> Result<(), Distrust> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(CWD, path, flags, Mode::empty()) {
            Err(Errno::NOENT) => Ok(()),
            dir => judge(&fstat(dir?)?, || Untrusted::Directory(path.to_owned())),
        }
    };
    check().map_err(|problem| Error { path: path.to_owned(), problem })
}

/// Puts a file with this content, for the user of this process only, in the place of whatever has the name. `unfinished` is another name in the same
/// directory, which it has until it is complete: whoever reads finds the old content or the new one. It is not synced.
///
/// # Errors
/// It could not be written; the file says what it said before.
pub fn replace(path: &Path, unfinished: &Path, content: &[u8]) -> io::Result<()> {
    put(path, unfinished, content, false)
}

/// As [`replace`]; when this returns, a machine that loses its power has the new content.
///
/// # Errors
/// As there, or it may be lost with the power.
pub fn replace_synced(path: &Path, unfinished: &Path, content: &[u8]) -> io::Result<()> {
    put(path, unfinished, content, true)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn put(path: &Path, unfinished: &Path, content: &[u8], is_synced: bool) -> io::Result<()> {
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(unfinished)?;
        file.write_all(content)?;
        if is_synced {
            file.sync_all()?;
        }
        drop(file);
        std::fs::rename(unfinished, path)
    };
    let written = write();
    if written.is_err() {
        // On a full disk what is written of it would be in the way.
        let _ = std::fs::remove_file(unfinished);
    }
    written
}

/// Bits of a mode, from stat(2).
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const STICKY: u32 = 0o1000;
const BY_GROUP: u32 = 0o020;
const BY_ALL: u32 = 0o002;

/// Whether nobody can change it but root and this process's user.
fn judge(stat: &Stat, what: impl Fn() -> Untrusted) -> Result<(), Distrust> {
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != own {
        return Err(Distrust::Foreign { what: what(), owner: stat.st_uid, own });
    }
    // In a sticky directory a name belongs to its file's owner. Mounted tokens are in such a one.
    if stat.st_mode & S_IFMT == S_IFDIR && stat.st_mode & STICKY != 0 {
        return Ok(());
    }
    let by = if stat.st_mode & BY_ALL != 0 {
        Writers::All
    } else if stat.st_mode & BY_GROUP != 0 && stat.st_gid != 0 {
        Writers::Group(stat.st_gid)
    } else {
        return Ok(());
    };
    Err(Distrust::Writable { what: what(), by, mode: stat.st_mode & 0o7777 })
}

fn or_own(own: u32) -> String {
    if own == 0 { String::new() } else { format!(" or user {own}") }
}

fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

// === impl Error ===

impl Error {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(&self.problem, Distrust::Io(cause) if cause.kind() == io::ErrorKind::NotFound)
    }

    /// Whether it is there and not believed.
    #[must_use]
    pub fn is_disbelief(&self) -> bool {
        matches!(self.problem, Distrust::NotAFile | Distrust::Foreign { .. } | Distrust::Writable { .. })
    }
}

impl From<Error> for io::Error {
    /// Without the path, which whoever asks names.
    fn from(error: Error) -> Self {
        match error.problem {
            Distrust::Io(cause) => cause,
            problem => Self::other(problem),
        }
    }
}

// === impl Distrust ===

impl From<Errno> for Distrust {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

// === impl Untrusted, Writers ===

impl Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::It => f.write_str("it"),
            Self::Directory(path) => write!(f, "its directory {}", path.display()),
        }
    }
}

impl Display for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "group {group}"),
            Self::All => f.write_str("all users"),
        }
    }
}

#[cfg(test)]
mod tests;
