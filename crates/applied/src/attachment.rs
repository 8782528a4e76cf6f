//! The plugin's records as the node agent finds them: it does not know by which names runtimes call their attachments.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kernel::Record;
use trusted::Links;

use super::{
    ATTACHMENT, AppliedRecord, Error, INPUTS, MAX_ATTACHMENTS, MAX_HEAD, NAMESPACE, Origin, list, parse_head,
    read_file, remove_file, replace, to_bytes,
};

/// What a record says without its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHead {
    /// Where it was applied.
    pub origin: Origin,
    /// When it was written.
    pub written: SystemTime,
    /// It has what its plan was made from, as records of sidecars do.
    pub has_inputs: bool,
}

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
    let found = heads(run_dir, &[ATTACHMENT])?.into_iter();
    Ok(found
        .map(|(path, RecordHead { origin, written, .. })| AttachmentRecord { path, origin, written })
        .collect())
}

/// Where the plugin has applied something, and the node agent by inputs that it kept.
///
/// # Errors
/// As [`attachments`].
pub fn origins_with_inputs(run_dir: &Path) -> Result<Vec<Origin>, Error> {
    let is_of_plugin = |path: &Path| has_prefix(path, &[ATTACHMENT]);
    let found = heads(run_dir, &[ATTACHMENT, NAMESPACE])?.into_iter();
    let its = found.filter(|(path, head)| head.has_inputs || is_of_plugin(path));
    Ok(its.map(|(_, head)| head.origin).collect())
}

fn heads(run_dir: &Path, kinds: &[&str]) -> Result<Vec<(PathBuf, RecordHead)>, Error> {
    let all = list(&run_dir.join(rundir::APPLIED_DIR))?.into_iter();
    let found = all.filter(|path| has_prefix(path, kinds)).take(MAX_ATTACHMENTS).map(|path| {
        match read_head(&path) {
            // It was there a moment ago; a link is no record.
            Err(error) if is_no_record(&error) => Ok(None),
            Ok(found) => Ok(found.map(|head| (path, head))),
            Err(error) => Err(Error::Io { operation: "read", path, cause: error.into() }),
        }
    });
    found.filter_map(Result::transpose).collect()
}

fn has_prefix(path: &Path, kinds: &[&str]) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| kinds.iter().any(|kind| name.starts_with(kind)))
}

/// Gone since it was listed, or no file.
fn is_no_record(error: &trusted::Error) -> bool {
    error.is_not_found() || matches!(error.problem, trusted::Distrust::NotAFile)
}

pub(super) fn read_head(path: &Path) -> Result<Option<RecordHead>, trusted::Error> {
    let failed = |cause| trusted::Error { path: path.to_owned(), problem: trusted::Distrust::Io(cause) };
    let file = trusted::open(path, Links::Refused)?;
    let written = file.metadata().and_then(|metadata| metadata.modified()).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_HEAD).read_to_end(&mut bytes).map_err(failed)?;
    let head = parse_head(&bytes).map(|(origin, rest)| {
        let has_inputs = rest.starts_with(INPUTS.as_bytes());
        RecordHead { origin, written, has_inputs }
    });
    Ok(head)
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
