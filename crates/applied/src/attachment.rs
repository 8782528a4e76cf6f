//! The plugin's records as the node agent finds them: it does not know by which names runtimes call their attachments.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kernel::Record;
use trusted::Links;

use super::{
    ATTACHMENT, AppliedRecord, Error, MAX_ATTACHMENTS, MAX_HEAD, Origin, list, parse_head, read_file,
    remove_file, replace, to_bytes,
};

/// A record of the plugin's by its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentRecord {
    path: PathBuf,
    /// Where it was applied.
    pub origin: Origin,
    /// When it was written.
    pub written: SystemTime,
}

/// The plugin's records. What is no record is left out.
///
/// # Errors
/// One of them cannot be read, so that nothing follows from the others: the one that is missing may be the one that counts.
pub fn attachments(run_dir: &Path) -> Result<Vec<AttachmentRecord>, Error> {
    let is_its = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(ATTACHMENT))
    };
    let its = list(&run_dir.join(rundir::APPLIED_DIR))?.into_iter().filter(is_its).take(MAX_ATTACHMENTS);
    let found = its.map(|path| match read_origin(&path) {
        // It was there a moment ago; a link is no record.
        Err(error) if is_no_record(&error) => Ok(None),
        Ok(found) => Ok(found.map(|(origin, written)| AttachmentRecord { path, origin, written })),
        Err(error) => Err(Error::Io { operation: "read", path, cause: error.into() }),
    });
    found.filter_map(Result::transpose).collect()
}

/// Gone since it was listed, or no file.
fn is_no_record(error: &trusted::Error) -> bool {
    error.is_not_found() || matches!(error.problem, trusted::Distrust::NotAFile)
}

fn read_origin(path: &Path) -> Result<Option<(Origin, SystemTime)>, trusted::Error> {
    let failed = |cause| trusted::Error { path: path.to_owned(), problem: trusted::Distrust::Io(cause) };
    let file = trusted::open(path, Links::Refused)?;
    let modified = file.metadata().and_then(|metadata| metadata.modified()).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_HEAD).read_to_end(&mut bytes).map_err(failed)?;
    Ok(parse_head(&bytes).map(|(origin, _)| (origin, modified)))
}

// === impl AttachmentRecord ===

impl AttachmentRecord {
    /// The whole record; `None` where it is gone.
    ///
    /// # Errors
    /// What is there cannot be used.
    pub fn read(&self) -> Result<Option<AppliedRecord>, Error> {
        read_file(self.path.clone())
    }

    /// Says that this is applied from now on.
    ///
    /// # Errors
    /// It is not written; the record is as it was, or gone.
    pub fn replace(&self, record: &Record, inputs: &str) -> Result<(), Error> {
        let (Some(dir), Some(name)) =
            (self.path.parent(), self.path.file_name().and_then(|name| name.to_str()))
        else {
            return Err(Error::Unreadable { path: self.path.clone() });
        };
        replace(dir, name, &to_bytes(&self.origin, record, inputs))
    }

    /// Removes it: nothing is applied any more. One that is not there is success.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(&self) -> Result<(), Error> {
        remove_file(&self.path)
    }
}
