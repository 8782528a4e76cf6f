//! The directory as a container runtime sees it.

use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use cni::conflist::{ConflistError, Document, Form, PluginEntry};
use cni::libcni::{Folder, LoadError, load_folder_file};

use super::{Problem, original_of};
use crate::file::{self, FileContent, FileError, MAX_BYTES};

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
    pub(crate) content: FileContent,
    pub(crate) document: Document,
    /// Where the list has more plugins, or would have as a list.
    pub(crate) folder_path: Option<PathBuf>,
    folder: Folder,
    pub(crate) state: FileState,
}

/// What a file's content is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileState {
    /// Runtimes load it.
    Valid,
    /// It had the plugin and no runtime loads it any more. The document is that of its original.
    Broken,
    /// The same, and it was written so recently that its writer may not be done.
    Settling,
}

impl Scan {
    /// Looks at all files, except `own`, which is ours alone.
    pub(crate) fn new(directory: &Path, own: Option<&Path>) -> Result<Self, FileError> {
        let mut scan = Self::default();
        let names = file::names(directory)?;
        let listed = names.iter().filter(|name| form_of(name).is_some());
        let mut listed = listed.map(|name| directory.join(name)).filter(|path| Some(path.as_path()) != own);
        for path in listed.by_ref().take(MAX_FILES) {
            match Candidate::load(&path) {
                Ok(candidate) => scan.candidates.push(candidate),
                Err(Problem::File(error)) if error.is_not_found() => {}
                Err(problem) => scan.problems.push(problem),
            }
        }
        if listed.next().is_some() {
            scan.problems.push(Problem::TooMany(directory.to_owned()));
        }
        Ok(scan)
    }

    /// The files that runtimes load, as they are listed.
    pub(crate) fn loaded(&self) -> Vec<PathBuf> {
        let valid = self.candidates.iter().filter(|candidate| candidate.state == FileState::Valid);
        valid.map(|candidate| candidate.listed.clone()).collect()
    }
}

impl Candidate {
    /// Reads a file that has to be what runtimes load. Of a file whose name no runtime looks for, the keys say what it is.
    pub(crate) fn load(listed: &Path) -> Result<Self, Problem> {
        let path = match follow(listed) {
            Err(Problem::LinkToSingle { path, .. }) => {
                let is_loaded = judge(listed, &FileContent::read(listed)?).is_ok();
                return Err(Problem::LinkToSingle { path, is_loaded });
            }
            path => path?,
        };
        let content = FileContent::read(&path)?;
        let (document, folder_path, folder, state) = match judge(listed, &content) {
            Ok(Judged { document, folder_path, folder }) => (document, folder_path, folder, FileState::Valid),
            Err(cause) => {
                let is_invalid = matches!(cause, Problem::Invalid { .. });
                let Some(document) = original(&path).filter(|_| is_invalid) else { return Err(cause) };
                let state = if is_recent(content.modified) { FileState::Settling } else { FileState::Broken };
                let folder_path = folder_path(&path, &document);
                let folder = read_folder(folder_path.as_deref(), &path);
                (document, folder_path, folder, state)
            }
        };
        if document.is_standalone() {
            return Err(Problem::Standalone(listed.to_owned()));
        }
        match listed.file_name().and_then(OsStr::to_str) {
            None => return Err(Problem::OddName(listed.to_owned())),
            Some(name) if name.ends_with(".json") => return Err(Problem::Json(listed.to_owned())),
            Some(_) => {}
        }
        Ok(Self { listed: listed.to_owned(), path, content, document, folder_path, folder, state })
    }

    /// The list with the plugin in it.
    pub(super) fn merge(&self, entry: &PluginEntry) -> Result<Vec<u8>, Problem> {
        let failed = |cause: ConflistError| Problem::Unmergeable { path: self.listed.clone(), cause };
        let merged = self.document.merge(entry, &self.folder).map_err(failed)?;
        if merged.len() as u64 > MAX_BYTES {
            return Err(Problem::TooLong(self.listed.clone()));
        }
        Ok(merged)
    }
}

/// A file that all runtimes load as the same network.
pub(super) struct Judged {
    pub(super) document: Document,
    pub(super) folder_path: Option<PathBuf>,
    pub(super) folder: Folder,
}

/// What runtimes make of a file.
pub(super) fn judge(listed: &Path, content: &FileContent) -> Result<Judged, Problem> {
    let invalid = |cause: LoadError| Problem::Invalid { path: listed.to_owned(), cause };
    let document = Document::of_form(form_of_path(listed), &content.bytes).map_err(invalid)?;
    let folder_path = folder_path(listed, &document);
    let folder = read_folder(folder_path.as_deref(), listed);
    let verdict = document.verdict(&folder);
    if verdict.is_agreed() {
        return Ok(Judged { document, folder_path, folder });
    }
    Err(match verdict.refusal() {
        Some(cause) => invalid(cause.clone()),
        None => Problem::Differs {
            path: listed.to_owned(),
            difference: verdict.difference(),
            folder: folder_path,
        },
    })
}

/// The form that a file has by its name.
pub(crate) fn form_of(name: &OsStr) -> Option<Form> {
    Form::of(&name.to_string_lossy())
}

pub(super) fn form_of_path(path: &Path) -> Option<Form> {
    path.file_name().and_then(form_of)
}

/// The document of a file's original, if there is one and it makes sense.
fn original(path: &Path) -> Option<Document> {
    let originals = [Some(path.to_owned()), super::with_other_extension(path)].into_iter().flatten();
    let mut documents = originals.filter_map(|path| {
        let content = FileContent::read(&original_of(&path)).ok()?;
        Document::of_form(form_of_path(&path), &content.bytes).ok()
    });
    documents.next()
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
            let target = std::fs::read_link(listed).map_err(failed)?;
            let is_outside = target.components().count() > 1;
            return Err(Problem::Dangling { path: listed.to_owned(), is_outside });
        }
        target => target.map_err(failed)?,
    };
    let directory = listed.parent().unwrap_or(Path::new("/"));
    if target.parent() != Some(&std::fs::canonicalize(directory).map_err(failed)?) {
        return Err(Problem::LinkOutside(listed.to_owned()));
    }
    if form_of_path(listed) == Some(Form::Single) {
        return Err(Problem::LinkToSingle { path: listed.to_owned(), is_loaded: true });
    }
    Ok(directory.join(target.file_name().unwrap_or_default()))
}

/// The folder of a network's further plugins, as `libcni` makes its path: a name may lead to another directory.
pub(super) fn folder_path(listed: &Path, document: &Document) -> Option<PathBuf> {
    let mut path = listed.parent()?.to_owned();
    for part in Path::new(&document.folder()?).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => {
                path.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(path)
}

/// The plugins in a folder. A single network is none of its own plugins, wherever its name leads: it goes when it becomes a list.
pub(super) fn read_folder(path: Option<&Path>, listed: &Path) -> Folder {
    let Some(path) = path else { return Folder::default() };
    let names = match file::names(path) {
        Ok(names) => names,
        Err(cause) => return Folder { unreadable: Some(cause.to_string()), ..Folder::default() },
    };
    let files =
        names.iter().filter(|name| name.to_string_lossy().ends_with(".conf")).map(|name| path.join(name));
    let is_file = |path: &PathBuf| std::fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir());
    let files = files.filter(|path| is_file(path) && path != listed).take(MAX_FOLDER_FILES);
    let plugin = |path: PathBuf| {
        let content = FileContent::read(&path).map_err(|cause| cause.to_string())?;
        load_folder_file(&content.bytes).map_err(|cause| format!("{}: {cause}", path.display()))
    };
    Folder { plugins: files.map(plugin).collect(), unreadable: None }
}
