//! The owner of a file that is replaced, where this process may not give files away (no CAP_CHOWN).
//!
//! Nothing but the old file itself has the old owner then. So the new content is put in place first, under the owner of this process; the old
//! file, which no name of a configuration is of any more, gets the same content, and then the two change places. At every instant the
//! configuration is whole. Who opened the old file just before it was displaced could read it while it is written; whoever does reads it at once,
//! and so a moment passes in between.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, OFlags, RenameFlags};

use super::{FileContent, FileError, identity, sync_directory};

/// How long who has opened a file may take to read it.
const READ_WITHIN: Duration = Duration::from_millis(50);

/// Whether `temp` in the place of `target` would have another owner, so that [`keep_owner`] has something to do.
pub(crate) fn would_lose_owner(temp: &Path, target: &Path) -> bool {
    differs(temp, target).unwrap_or(false)
}

/// Whether the file at `new` is this process's own, and that at `old` is not and has no other name. A file of two names is not written to.
fn differs(new: &Path, old: &Path) -> std::io::Result<bool> {
    let (new, old) = (std::fs::symlink_metadata(new)?, std::fs::symlink_metadata(old)?);
    let own = rustix::process::geteuid().as_raw();
    let is_lost = new.uid() == own && (old.uid(), old.gid()) != (new.uid(), new.gid());
    Ok(is_lost && old.is_file() && old.nlink() == 1)
}

/// After the exchange of `target` with `displaced`: lets the displaced file come back with the new content, if its owner could not
/// be given to the new one. Where that is not possible the new one stays as it is.
pub(super) fn keep_owner(displaced: &Path, target: &Path) -> Result<(), FileError> {
    if !differs(target, displaced).unwrap_or(false) {
        return Ok(());
    }
    let placed = identity(target)?;
    let new = FileContent::read(target)?;
    std::thread::sleep(READ_WITHIN);
    if write(displaced, &new.bytes).is_err()
        || !FileContent::read(displaced).is_ok_and(|content| content.bytes == new.bytes)
    {
        return Ok(());
    }
    let exchange = || rustix::fs::renameat_with(CWD, displaced, CWD, target, RenameFlags::EXCHANGE);
    if exchange().is_err() {
        return Ok(());
    }
    // Somebody else has written meanwhile: theirs goes back. The next look at the directory finds it.
    let is_ours = identity(displaced)? == placed && FileContent::read(displaced)?.bytes == new.bytes;
    if !is_ours {
        exchange().map_err(|cause| FileError::io("replace", target, cause))?;
    }
    sync_directory(target)
}

/// Its content, and not what it is: owner, mode, label and the like stay.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut file = OpenOptions::new().write(true).truncate(true).custom_flags(flags).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
