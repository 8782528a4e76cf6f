//! The mark beside a program that is left over, and the end of both.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::CACHE_DIR;
use crate::results::{Results, look};

/// Longest path in a mark, in bytes (linux/limits.h, `PATH_MAX`).
const MAX_PATH: u64 = 4096;

/// How long is waited for another one that removes or installs the program; each takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// The file that says that a program is left over: `.<program>.left-over` in its directory. It holds the path of libcni's cache directory as
/// programs of the node see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    program: PathBuf,
    path: PathBuf,
}

/// The mark, locked. Who has it may remove the program; who installs one takes the mark away first, under the same lock.
struct Locked {
    _file: File,
}

// === impl Mark ===

impl Mark {
    /// The mark of a program; nothing is looked at.
    pub fn of(program: &Path) -> Self {
        Self { program: program.to_owned(), path: program.with_file_name(Self::name(program)) }
    }

    /// Name of the mark's file.
    pub fn name(program: &Path) -> OsString {
        let mut name = OsString::from(".");
        name.push(program.file_name().unwrap_or_default());
        name.push(".left-over");
        name
    }

    /// The mark of the running program.
    pub fn of_this_program() -> Option<Self> {
        std::env::current_exe().ok().map(|program| Self::of(&program))
    }

    /// Whether it is there.
    pub fn is_set(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok()
    }

    /// libcni's cache directory, if the mark is there.
    pub fn cache(&self) -> Option<PathBuf> {
        let mut path = Vec::new();
        File::open(&self.path).and_then(|file| file.take(MAX_PATH).read_to_end(&mut path)).ok()?;
        let path = PathBuf::from(OsString::from_vec(path));
        Some(if path.is_absolute() { path } else { PathBuf::from(CACHE_DIR) })
    }

    /// Says that the program is left over, and where the node has libcni's cache.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn set(&self, cache: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        // One of an earlier version: whoever can open it can hold its lock.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(cache.as_os_str().as_bytes())
    }

    /// Says that the program is installed. Nothing removes it from here on.
    ///
    /// # Errors
    /// The mark cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        let Some(_locked) = self.lock()? else { return Ok(()) };
        remove(&self.path).map(drop)
    }

    fn flock(&self, file: &File) -> io::Result<()> {
        let start = Instant::now();
        loop {
            match flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK | Errno::INTR) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(PAUSE);
                }
                Err(Errno::WOULDBLOCK) => {
                    let text = format!(
                        "another process has locked {}; end it, or remove the file",
                        self.path.display()
                    );
                    return Err(io::Error::other(text));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// `None` if there is no mark, or no more.
    fn lock(&self) -> io::Result<Option<Locked>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        self.flock(&file)?;
        let held = file.metadata()?;
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                Ok(Some(Locked { _file: file }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Removes a marked program and its mark if no result that is kept below `cache` names it. Says what the results say; after
/// `Naming(0)` the program is gone.
///
/// # Errors
/// The program or the mark cannot be removed.
pub fn remove_if_unneeded(mark: &Mark, cache: &Path) -> io::Result<Results> {
    let Some(_locked) = mark.lock()? else { return Ok(Results::Unknown) };
    let name = mark.program.file_name().unwrap_or_default().to_string_lossy();
    let results = look(cache, &name);
    if results == Results::Naming(0) {
        remove(&mark.program)?;
        remove(&mark.path)?;
    }
    Ok(results)
}

/// Removes a program and its mark, whoever needs it; false if there was neither.
///
/// # Errors
/// One of them cannot be removed.
pub fn remove_now(mark: &Mark) -> io::Result<bool> {
    let _locked = mark.lock()?;
    let removed = remove(&mark.program)?;
    Ok(remove(&mark.path)? || removed)
}

/// False if there was no such file.
fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
