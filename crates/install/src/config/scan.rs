//! The directory as a container runtime sees it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cni::conflist::{ConflistError, Document, Form};

use super::{Problem, original_of};
use crate::file::{self, Content, FileError};

/// Most configurations that are looked at; nodes have one to five.
pub(super) const MAX_FILES: usize = 64;
/// Most files of a list's own folder.
const MAX_FOLDER_FILES: usize = 64;
/// A file that makes no sense is left alone for this long after its last change: somebody may be writing it.
const SETTLING: Duration = Duration::from_secs(1);

/// Network configurations in the order in which a runtime tries them.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) problems: Vec<Problem>,
}

/// A file that may be used.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// As it is listed.
    pub(crate) listed: PathBuf,
    /// The file itself: a link is followed.
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
    pub(crate) document: Document,
    pub(crate) state: State,
}

/// What a file's content is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// A runtime loads it.
    Valid,
    /// It had the plugin and is no configuration any more. The document is that of its original.
    Broken,
    /// The same, and it was written so recently that its writer may not be done.
    Settling,
}

impl Scan {
    /// Looks at all files, except `own`, which is ours alone.
    pub(crate) fn new(directory: &Path, own: Option<&Path>) -> Result<Self, FileError> {
        let mut scan = Self::default();
        let names = file::names(directory)?;
        let listed = names.iter().filter(|name| name.to_str().and_then(Form::of).is_some());
        let mut listed = listed.map(|name| directory.join(name)).filter(|path| Some(path.as_path()) != own);
        for path in listed.by_ref().take(MAX_FILES) {
            match Candidate::load(&path, true) {
                Ok(candidate) => scan.candidates.push(candidate),
                Err(Problem::File(error)) if error.is_not_found() => {}
                Err(problem) => scan.problems.push(problem),
            }
        }
        if listed.next().is_some() {
            scan.problems.push(Problem::TooMany { path: directory.to_owned() });
        }
        Ok(scan)
    }
}

impl Candidate {
    /// Reads a file. With `strict` it has to be what a runtime accepts; else an object is enough.
    pub(crate) fn load(listed: &Path, strict: bool) -> Result<Self, Problem> {
        let path = follow(listed)?;
        let content = Content::read(&path)?;
        let judged = if strict { judge(listed, &content) } else { Document::parse(&content.bytes) };
        let (document, state) = match judged {
            Ok(document) => (document, State::Valid),
            Err(cause) => {
                let cause = Problem::Invalid { path: listed.to_owned(), cause };
                let Some(original) = original(&path) else { return Err(cause) };
                (original, if is_recent(content.modified) { State::Settling } else { State::Broken })
            }
        };
        if document.is_standalone() {
            return Err(Problem::Standalone(listed.to_owned()));
        }
        Ok(Self { listed: listed.to_owned(), path, content, document, state })
    }
}

/// What a runtime makes of a file.
pub(super) fn judge(listed: &Path, content: &Content) -> Result<Document, ConflistError> {
    let document = Document::parse(&content.bytes)?;
    if let Some(form) = listed.to_str().and_then(Form::of) {
        document.check(form, folder_plugins(listed, &document))?;
    }
    Ok(document)
}

/// The document of a file's original, if there is one and it makes sense.
fn original(path: &Path) -> Option<Document> {
    let originals = [Some(path.to_owned()), super::twin(path)];
    let mut contents =
        originals.into_iter().flatten().filter_map(|path| Content::read(&original_of(&path)).ok());
    contents.find_map(|content| Document::parse(&content.bytes).ok())
}

/// A time in the future, from a clock that was set back, is not recent.
fn is_recent(modified: Option<SystemTime>) -> bool {
    let age = modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age < SETTLING)
}

/// The file that is to be replaced. What a link points to has to be in the same directory: another one may be on another mount.
pub(crate) fn follow(listed: &Path) -> Result<PathBuf, Problem> {
    let failed = |cause| Problem::File(FileError::io("read", listed, cause));
    if !std::fs::symlink_metadata(listed).map_err(failed)?.is_symlink() {
        return Ok(listed.to_owned());
    }
    let target = match std::fs::canonicalize(listed) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(Problem::Dangling(listed.to_owned()));
        }
        target => target.map_err(failed)?,
    };
    let directory = listed.parent().unwrap_or(Path::new("/"));
    if target.parent() != Some(&std::fs::canonicalize(directory).map_err(failed)?) {
        return Err(Problem::LinkOutside(listed.to_owned()));
    }
    if listed.to_str().and_then(Form::of) == Some(Form::Single) {
        return Err(Problem::LinkToSingle(listed.to_owned()));
    }
    Ok(directory.join(target.file_name().unwrap_or_default()))
}

/// Valid single plugins in the folder that belongs to a list.
fn folder_plugins(listed: &Path, document: &Document) -> usize {
    let (Some(folder), Some(directory)) = (document.folder(), listed.parent()) else { return 0 };
    let folder = directory.join(folder);
    let names = file::names(&folder).unwrap_or_default();
    let files = names.iter().filter(|name| name.to_str().and_then(Form::of) == Some(Form::Single));
    let valid = files.take(MAX_FOLDER_FILES).filter(|name| {
        let content = Content::read(&folder.join(name)).ok();
        let document = content.and_then(|content| Document::parse(&content.bytes).ok());
        document.is_some_and(|document| document.check(Form::Single, 0).is_ok())
    });
    valid.count()
}
