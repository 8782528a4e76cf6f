//! A plan carried out.

use std::path::Path;

use super::plan::Write;
use super::{ConfigError, original_of};
use crate::file::{self, FileContent, FileError};

/// Writes the file; false if somebody else wrote meanwhile, and the directory has to be looked at again.
///
/// At every instant there is a complete configuration: the original is a second name of the file before it is displaced, and a
/// single network goes only after the list is there.
pub(crate) fn write(write: &Write) -> Result<bool, ConfigError> {
    let temp = file::stage_bytes(&write.target, &write.attributes, &write.new)?;
    if write.keep_original {
        let kept = match (&write.single, &write.old) {
            (Some((single, bytes)), _) => keep_original(single, bytes)?,
            (None, Some(old)) if file::adopt::would_lose_owner(&temp, &write.target) => {
                keep_copy(&write.target, old)?
            }
            (None, Some(old)) => keep_original(&write.target, &old.bytes)?,
            (None, None) => true,
        };
        if !kept {
            return Ok(false);
        }
    }
    let is_written = match &write.old {
        Some(old) => file::swap(&temp, &write.target, &old.bytes)?,
        None => file::place_new(&temp, &write.target)?,
    };
    match &write.single {
        Some((single, bytes)) if is_written => Ok(file::remove_if(single, bytes)?),
        _ => Ok(is_written),
    }
}

/// Gives the file a second name, under which it stays when it is replaced: with owner, mode, times and all. False if it is no longer
/// what was read.
fn keep_original(path: &Path, bytes: &[u8]) -> Result<bool, FileError> {
    let original = original_of(path);
    let Some(temp) = file::stage_link(path, &original)? else { return Ok(false) };
    let content = FileContent::read(&temp)?;
    if content.bytes != bytes {
        return Ok(false);
    }
    file::place(&temp, &original)?;
    Ok(true)
}

/// The same for a file that goes on to be the configuration, with other content, because only so its owner is kept. False if it is no longer
/// what was read.
fn keep_copy(path: &Path, old: &FileContent) -> Result<bool, FileError> {
    let original = original_of(path);
    let temp = file::stage_bytes(&original, &old.attributes(), &old.bytes)?;
    let content = FileContent::read_if_there(path)?;
    if content.is_none_or(|content| content.bytes != old.bytes) {
        return Ok(false);
    }
    file::place(&temp, &original)?;
    Ok(true)
}
