//! A configuration as it was before us.

use std::path::{Path, PathBuf};

use cni::conflist::Document;

use super::scan::judge;
use super::{ConfigError, TRIES, base_of, original_of, twin};
use crate::file::{self, Content, FileError};

/// What became of a file that had our entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    /// This file is what it was before, to the byte.
    Restored(PathBuf),
    /// Others have changed the file since; it is as they left it, without our entry.
    EntryRemoved(PathBuf),
    /// The file was ours alone.
    Deleted(PathBuf),
}

/// Takes our entry out of the file at `path`; `None` if it has none. A file that `is_own` is ours alone.
pub(crate) fn take_out(path: &Path, is_own: bool) -> Result<Option<Taken>, ConfigError> {
    for _ in 0..TRIES {
        let Some(content) = Content::read_if_there(path)? else { return Ok(None) };
        let document = judge(path, &content).ok();
        if document.as_ref().is_some_and(|document| document.entries().is_empty()) {
            return Ok(None);
        }
        let is_own = is_own || document.as_ref().is_some_and(Document::is_standalone);
        // What is no configuration (any more) comes back from its original, or is none of our business.
        if document.is_none() && !originals(path).iter().any(|original| original.kept_at.exists()) {
            return Ok(None);
        }
        let file = File { path, content: &content, document: document.as_ref(), is_own };
        if let Some(taken) = file.take_out()? {
            for original in originals(path) {
                file::remove(&original.kept_at)?;
            }
            return Ok(Some(taken));
        }
    }
    Err(ConfigError::Unsteady(path.to_owned()))
}

/// Takes our entry out of every file that it was put into earlier, except `used`. Files without an original beside them are not
/// touched: who wrote an entry there is not known.
pub(crate) fn release(directory: &Path, used: &Path) -> Result<Vec<Taken>, ConfigError> {
    let mut all = Vec::new();
    for name in file::names(directory)? {
        let Some(base) = base_of(&name).map(|base| directory.join(base)) else { continue };
        // the original of a single network belongs to the list that it has become
        let list = if base.extension().is_some_and(|kind| kind == "conf") { twin(&base) } else { None };
        let list = list.unwrap_or(base);
        if list != used {
            all.extend(take_out(&list, false)?);
        }
    }
    Ok(all)
}

/// Removes originals whose files have gone or are no longer ours, for the end.
pub(crate) fn remove_originals(directory: &Path) -> Vec<FileError> {
    let names = match file::names(directory) {
        Ok(names) => names,
        Err(error) => return vec![error],
    };
    let originals = names.iter().filter(|name| base_of(name).is_some());
    originals.filter_map(|name| file::remove(&directory.join(name)).err()).collect()
}

struct File<'a> {
    path: &'a Path,
    content: &'a Content,
    /// `None` if it is no configuration any more.
    document: Option<&'a Document>,
    is_own: bool,
}

struct Original {
    /// Under which name it comes back.
    name: PathBuf,
    kept_at: PathBuf,
}

/// The originals that a file may have.
fn originals(path: &Path) -> Vec<Original> {
    let single = twin(path).filter(|_| path.extension().is_some_and(|kind| kind == "conflist"));
    let names = [Some(path.to_owned()), single].into_iter().flatten();
    names.map(|name| Original { kept_at: original_of(&name), name }).collect()
}

impl File<'_> {
    /// `None` if somebody else wrote meanwhile.
    fn take_out(&self) -> Result<Option<Taken>, ConfigError> {
        for original in originals(self.path) {
            let Some(kept) = Content::read_if_there(&original.kept_at)? else { continue };
            let kept_document = Document::parse(&kept.bytes).ok();
            let is_same =
                |now: &Document| kept_document.as_ref().is_some_and(|kept| kept.is_same_network(now));
            if self.is_own || self.document.is_none_or(is_same) {
                return self.bring_back(&original);
            }
        }
        let rest = if self.is_own { None } else { self.without_entry()? };
        match rest {
            None => {
                let is_removed = file::remove_if(self.path, &self.content.bytes)?;
                Ok(is_removed.then(|| Taken::Deleted(self.path.to_owned())))
            }
            Some(rest) => {
                let temp = file::stage_bytes(self.path, &self.content.attributes(), &rest)?;
                let is_written = file::swap(&temp, self.path, &self.content.bytes)?;
                Ok(is_written.then(|| Taken::EntryRemoved(self.path.to_owned())))
            }
        }
    }

    fn without_entry(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        let failed = |cause| ConfigError::Merge { path: self.path.to_owned(), cause };
        self.document.map_or(Ok(None), Document::without_entry).map_err(failed)
    }

    fn bring_back(&self, original: &Original) -> Result<Option<Taken>, ConfigError> {
        if original.name == self.path {
            let is_back = file::swap(&original.kept_at, self.path, &self.content.bytes)?;
            return Ok(is_back.then(|| Taken::Restored(self.path.to_owned())));
        }
        // The single network first, so that there is always one. If its name is taken, its owner has written it anew.
        file::place_new(&original.kept_at, &original.name)?;
        let is_removed = file::remove_if(self.path, &self.content.bytes)?;
        Ok(is_removed.then(|| Taken::Restored(original.name.clone())))
    }
}
