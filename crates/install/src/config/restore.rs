//! A configuration as it was before us.

use std::path::{Path, PathBuf};

use cni::conflist::{Document, Form};
use cni::libcni::Folder;

use super::scan::{folder_path, form_of_path, judge, read_folder};
use super::{ConfigError, LIST_END, Problem, SINGLE_END, TRIES, base_of, list_of, original_of, with_end};
use crate::file::{self, FileContent, FileError};

/// What became of a file that had our entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryRemoval {
    /// This file is what it was before, to the byte.
    Restored(PathBuf),
    /// Others have changed the file since; it is as they left it, without our entry.
    EntryRemoved(PathBuf),
    /// The file was ours alone.
    Deleted(PathBuf),
}

/// Whose a file is by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ours {
    /// We made it, and another component's network in it is a copy.
    Whole,
    /// Nothing but an entry in it.
    Entry,
}

/// Takes our entry out of the file at `path`; `None` if it has none.
pub(crate) fn take_out(path: &Path, ours: Ours) -> Result<Option<EntryRemoval>, ConfigError> {
    for _ in 0..TRIES {
        let Some(file) = File::of_ours(path, ours)? else { return Ok(None) };
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

/// Brings back the original of a file whose owner has given it a name that no runtime loads, such as that of a backup: with that name
/// undone it would call a plugin that is gone. `None` for any other file.
pub(crate) fn take_out_of_renamed(path: &Path) -> Result<Option<EntryRemoval>, ConfigError> {
    let Some((file, way)) = File::renamed(path)? else { return Ok(None) };
    Ok(file.apply(&way)?.then(|| way.taken(path)))
}

/// What [`take_out_of_renamed`] would do now.
pub(crate) fn plan_take_out_of_renamed(path: &Path) -> Result<Option<EntryRemoval>, ConfigError> {
    Ok(File::renamed(path)?.map(|(_, way)| way.taken(path)))
}

/// What [`take_out`] would do now.
pub(crate) fn plan_take_out(path: &Path, ours: Ours) -> Result<Option<EntryRemoval>, ConfigError> {
    let Some(file) = File::of_ours(path, ours)? else { return Ok(None) };
    Ok(Some(file.plan()?.taken(path)))
}

/// Takes our entry out of every file that it was put into earlier, except `used`. Files without an original beside them are not
/// touched: who wrote an entry there is not known.
pub(crate) fn release(directory: &Path, used: &Path) -> Result<Vec<EntryRemoval>, ConfigError> {
    let mut all = Vec::new();
    for name in file::names(directory)? {
        let Some(base) = base_of(&name).map(|base| directory.join(base)) else { continue };
        // the original of a single network belongs to the list that it has become
        let list = list_of(&base);
        if list != used {
            all.extend(take_out(&list, Ours::Entry)?);
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

/// A file with something of ours in it.
struct File<'a> {
    path: &'a Path,
    content: FileContent,
    /// `None` if it is no JSON object any more.
    document: Option<Document>,
    folder: Folder,
    /// Whether no runtime loads it.
    is_invalid: bool,
    ours: Ours,
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

/// The originals that a file has under its name.
fn originals(path: &Path) -> Vec<Original> {
    let single = with_end(path, LIST_END, SINGLE_END);
    let names = [Some(path.to_owned()), single].into_iter().flatten();
    names.map(|name| Original { kept_at: original_of(&name), name }).collect()
}

/// Originals without a file of their name: one may belong to this file, which had another name then.
fn orphaned_originals(path: &Path) -> Result<Vec<Original>, FileError> {
    let Some(directory) = path.parent() else { return Ok(Vec::new()) };
    let bases = file::names(directory)?.into_iter().filter_map(|name| base_of(&name));
    let orphaned = bases.map(|base| directory.join(base)).filter(|base| !holds_entry(&list_of(base)));
    let original = |base: PathBuf| {
        let kept_at = original_of(&base);
        match (form_of_path(&base), form_of_path(path)) {
            (Some(Form::Single), None) => None,
            (Some(Form::Single), Some(_)) => {
                with_end(path, LIST_END, SINGLE_END).map(|name| Original { name, kept_at })
            }
            _ => Some(Original { name: path.to_owned(), kept_at }),
        }
    };
    Ok(orphaned.filter_map(original).collect())
}

/// Whether a file has something of ours in it.
fn holds_entry(path: &Path) -> bool {
    let content = FileContent::read(path).ok();
    let document = content.and_then(|content| Document::of_form(form_of_path(path), &content.bytes).ok());
    document.is_some_and(|document| document.has_entry())
}

impl Way {
    fn taken(self, path: &Path) -> EntryRemoval {
        match self {
            Self::BringBack(original) => EntryRemoval::Restored(original.name),
            Self::Rewrite(_) => EntryRemoval::EntryRemoved(path.to_owned()),
            Self::Delete => EntryRemoval::Deleted(path.to_owned()),
        }
    }
}

impl<'a> File<'a> {
    /// `None` if there is nothing of ours in it. Whose the file is comes before whether it is one.
    fn of_ours(path: &'a Path, ours: Ours) -> Result<Option<Self>, ConfigError> {
        let Some(content) = FileContent::read_if_there(path)? else { return Ok(None) };
        let document = Document::of_form(form_of_path(path), &content.bytes).ok();
        let is_invalid = matches!(judge(path, &content), Err(Problem::Invalid { .. }));
        let has_entry = document.as_ref().is_some_and(Document::has_entry);
        // What no runtime loads comes back from its original, or goes if we made it.
        let is_ruin = is_invalid
            && (ours == Ours::Whole || originals(path).iter().any(|original| original.kept_at.exists()));
        if !has_entry && !is_ruin {
            return Ok(None);
        }
        let is_alone = document.as_ref().is_some_and(Document::is_standalone);
        let ours = if is_alone { Ours::Whole } else { ours };
        let folder = document.as_ref().and_then(|document| folder_path(path, document));
        let folder = read_folder(folder.as_deref(), path);
        Ok(Some(Self { path, content, document, folder, is_invalid, ours }))
    }

    /// The same for a file with a name that no runtime loads, if there is an original of its network that is not of a file any more.
    fn renamed(path: &'a Path) -> Result<Option<(Self, Way)>, ConfigError> {
        let Some(file) = Self::of_ours(path, Ours::Entry)?.filter(|file| file.ours == Ours::Entry) else {
            return Ok(None);
        };
        let network = file.document.as_ref().and_then(Document::network);
        for original in orphaned_originals(path)? {
            let Some(kept) = FileContent::read_if_there(&original.kept_at)? else { continue };
            let kept = Document::parse(&kept.bytes).ok();
            if network.is_some() && kept.and_then(|kept| kept.network()) == network {
                let way = file.plan()?;
                return Ok(Some((file, way)));
            }
        }
        Ok(None)
    }

    fn plan(&self) -> Result<Way, ConfigError> {
        for original in originals(self.path) {
            let Some(kept) = FileContent::read_if_there(&original.kept_at)? else { continue };
            if self.ours == Ours::Whole || self.is_invalid || self.is_network_of(&original, &kept) {
                return Ok(Way::BringBack(original));
            }
        }
        if self.ours == Ours::Whole {
            return Ok(Way::Delete);
        }
        for original in orphaned_originals(self.path)? {
            let Some(kept) = FileContent::read_if_there(&original.kept_at)? else { continue };
            if self.is_network_of(&original, &kept) {
                return Ok(Way::BringBack(original));
            }
        }
        Ok(self.without_entry()?.map_or(Way::Delete, Way::Rewrite))
    }

    /// Whether the file is still the network that the original holds.
    fn is_network_of(&self, original: &Original, kept: &FileContent) -> bool {
        let kept = Document::of_form(form_of_path(&original.name), &kept.bytes).ok();
        let kept = kept.as_ref().zip(self.document.as_ref());
        kept.is_some_and(|(kept, now)| kept.is_same_network(now))
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
        let without = |document: &Document| document.without_entry(&self.folder);
        self.document.as_ref().map_or(Ok(None), without).map_err(failed)
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
