//! Who holds the locks of agents, for whoever only looks.

use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use trusted::Links;

use crate::Holder;

/// Largest file of a holder that is read, in bytes.
const MAX_HOLDER: u64 = 4096;

/// The agent that holds the lock of this name ([`LOCK_NAME`](crate::LOCK_NAME), [`NEXT_LOCK_NAME`](crate::NEXT_LOCK_NAME)); one whose file is not
/// understood has no name. Makes no file.
///
/// # Errors
/// The file is there and cannot be opened.
pub fn holder(run_dir: &Path, name: &str) -> io::Result<Option<Holder>> {
    let file = match trusted::open(&run_dir.join(name), Links::Refused) {
        Err(error) if error.is_not_found() => return Ok(None),
        file => file?,
    };
    if flock(&file, FlockOperation::NonBlockingLockShared) != Err(Errno::WOULDBLOCK) {
        return Ok(None);
    }
    let mut text = Vec::new();
    let _ = file.take(MAX_HOLDER).read_to_end(&mut text);
    Ok(Some(serde_json::from_slice(&text).unwrap_or_default()))
}
