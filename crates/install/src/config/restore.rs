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
        let Some(file) = File::with_entry(path, is_own)? else { return Ok(None) };
        let way = file.plan()?;
        if file.apply(&way)? {
            for original in originals(path) {
                file::remove(&original.kept_at)?;
            }
            return Ok(Some(way.taken(path)));
        }
    }
    Err(ConfigError::Unsteady(path.to_owned()))
}

/// What [`take_out`] would do now.
pub(crate) fn plan_take_out(path: &Path, is_own: bool) -> Result<Option<Taken>, ConfigError> {
    let Some(file) = File::with_entry(path, is_own)? else { return Ok(None) };
    Ok(Some(file.plan()?.taken(path)))
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
    content: Content,
    /// `None` if it is no configuration any more.
    document: Option<Document>,
    is_own: bool,
}

struct Original {
    /// Under which name it comes back.
    name: PathBuf,
    kept_at: PathBuf,
}

/// How our entry gets out of a file.
enum Way {
    /// The original comes back.
    BringBack(Original),
    /// The file is written without it.
    Rewrite(Vec<u8>),
    /// Nothing is left of the file.
    Delete,
}

/// The originals that a file may have.
fn originals(path: &Path) -> Vec<Original> {
    let single = twin(path).filter(|_| path.extension().is_some_and(|kind| kind == "conflist"));
    let names = [Some(path.to_owned()), single].into_iter().flatten();
    names.map(|name| Original { kept_at: original_of(&name), name }).collect()
}

impl Way {
    fn taken(self, path: &Path) -> Taken {
        match self {
            Self::BringBack(original) => Taken::Restored(original.name),
            Self::Rewrite(_) => Taken::EntryRemoved(path.to_owned()),
            Self::Delete => Taken::Deleted(path.to_owned()),
        }
    }
}

impl<'a> File<'a> {
    /// `None` if there is nothing of ours in it.
    fn with_entry(path: &'a Path, is_own: bool) -> Result<Option<Self>, ConfigError> {
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
        Ok(Some(Self { path, content, document, is_own }))
    }

    fn plan(&self) -> Result<Way, ConfigError> {
        for original in originals(self.path) {
            let Some(kept) = Content::read_if_there(&original.kept_at)? else { continue };
            let kept_document = Document::parse(&kept.bytes).ok();
            let is_same =
                |now: &Document| kept_document.as_ref().is_some_and(|kept| kept.is_same_network(now));
            if self.is_own || self.document.as_ref().is_none_or(is_same) {
                return Ok(Way::BringBack(original));
            }
        }
        let rest = if self.is_own { None } else { self.without_entry()? };
        Ok(rest.map_or(Way::Delete, Way::Rewrite))
    }

    /// False if somebody else wrote meanwhile.
    fn apply(&self, way: &Way) -> Result<bool, ConfigError> {
        match way {
            Way::BringBack(original) => self.bring_back(original),
            Way::Rewrite(rest) => {
                let temp = file::stage_bytes(self.path, &self.content.attributes(), rest)?;
                Ok(file::swap(&temp, self.path, &self.content.bytes)?)
            }
            Way::Delete => Ok(file::remove_if(self.path, &self.content.bytes)?),
        }
    }

    fn without_entry(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        let failed = |cause| ConfigError::Merge { path: self.path.to_owned(), cause };
        self.document.as_ref().map_or(Ok(None), Document::without_entry).map_err(failed)
    }

    fn bring_back(&self, original: &Original) -> Result<bool, ConfigError> {
        if original.name == self.path {
            return Ok(file::swap(&original.kept_at, self.path, &self.content.bytes)?);
        }
        // The single network first, so that there is always one. If its name is taken, its owner has written it anew.
        file::place_new(&original.kept_at, &original.name)?;
        Ok(file::remove_if(self.path, &self.content.bytes)?)
    }
}
