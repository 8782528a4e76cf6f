//! The plugin's program, and what else the image brings, in the runtime's directories.

mod probe;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use leftover::Mark;
pub(crate) use probe::{own_version, supported_versions};

use crate::file::{self, FileAttributes, FileError};

/// File name of the plugin's program, which is tried before it is put in place.
pub const PLUGIN: &str = cni::conflist::ENTRY_TYPE;

/// A program that is not in its place.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The image is not what it should be.
    #[error("directory {path} has no files to copy; the image is incomplete", path = .0.display())]
    NothingToCopy(PathBuf),
    /// Runtimes look for programs in a directory that is mounted; a directory that we made would not be read.
    #[error(
        "directory {path} does not exist; mount the directory where the container runtime looks for CNI plugins (chart value cniBinDir)",
        path = .0.display()
    )]
    NoTarget(PathBuf),
    /// The plugin's program does not run here. The one in place is kept.
    #[error("{path} is not replaced, because the new program does not run here: {problem}", path = path.display())]
    DoesNotRun {
        /// The program's place.
        path: PathBuf,
        /// What happened when it was asked for its version.
        problem: String,
    },
}

/// Where programs come from and go to.
#[derive(Debug)]
pub(crate) struct Binaries<'a> {
    pub(crate) source: &'a Path,
    pub(crate) targets: &'a [PathBuf],
}

impl Binaries<'_> {
    /// Names of the files to copy, sorted.
    pub(crate) fn names(&self) -> Result<Vec<OsString>, BinaryError> {
        let mut names = file::names(self.source)?;
        names.retain(|name| {
            std::fs::symlink_metadata(self.source.join(name)).is_ok_and(|metadata| metadata.is_file())
        });
        if names.is_empty() { Err(BinaryError::NothingToCopy(self.source.to_owned())) } else { Ok(names) }
    }

    /// Whether all is in place.
    pub(crate) fn is_in_order(&self) -> Result<bool, BinaryError> {
        if self.targets.iter().any(|target| Mark::of(&target.join(PLUGIN)).is_set()) {
            return Ok(false);
        }
        for name in self.names()? {
            for target in self.targets {
                if !is_same(&self.source.join(&name), &target.join(&name))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Copies what differs; the files that were written.
    pub(crate) fn ensure(&self) -> Result<Vec<PathBuf>, BinaryError> {
        let names = self.names()?;
        let mut written = Vec::new();
        for target in self.targets {
            if !target.is_dir() {
                return Err(BinaryError::NoTarget(target.clone()));
            }
            // Before anything else: with the mark of an uninstallation a program captures nothing, and goes.
            let program = target.join(PLUGIN);
            Mark::of(&program).clear().map_err(|cause| FileError::io("install again", &program, cause))?;
            for name in &names {
                let (from, to) = (self.source.join(name), target.join(name));
                if !is_same(&from, &to)? {
                    copy(&from, &to)?;
                    written.push(to);
                }
            }
        }
        Ok(written)
    }

    /// Removes what killed copies left: names that begin with a copied file's and `.tmp.`. Those that stay.
    pub(crate) fn sweep(&self) -> Vec<FileError> {
        let mut failed = Vec::new();
        let Ok(ours) = self.names() else { return failed };
        for target in self.targets {
            for name in file::names(target).unwrap_or_default() {
                let is_left = |ours: &OsString| {
                    let mut prefix = ours.clone();
                    prefix.push(".tmp.");
                    name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes())
                };
                if ours.iter().any(is_left) {
                    failed.extend(file::remove(&target.join(&name)).err());
                }
            }
        }
        failed
    }
}

/// Copies a program; the one in place stays until the new one is complete and, if it is the plugin's, has run.
fn copy(from: &Path, to: &Path) -> Result<(), BinaryError> {
    let mut source = File::open(from).map_err(|cause| FileError::io("read", from, cause))?;
    let metadata = source.metadata().map_err(|cause| FileError::io("read", from, cause))?;
    let attributes = FileAttributes::mode(metadata.permissions().mode() & 0o7777);
    let temp = file::stage(to, &attributes, |file| io::copy(&mut source, file).map(drop))?;
    if to.file_name().is_some_and(|name| name == PLUGIN) {
        supported_versions(&temp).map_err(|problem| BinaryError::DoesNotRun {
            path: to.to_owned(),
            problem: problem.to_string(),
        })?;
    }
    Ok(file::place(&temp, to)?)
}

/// Same content and permission bits.
fn is_same(one: &Path, two: &Path) -> Result<bool, FileError> {
    let open = |path: &Path| match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            let file = File::open(path).map_err(|cause| FileError::io("read", path, cause))?;
            Ok(Some((file, metadata.len(), metadata.permissions().mode())))
        }
        Ok(_) => Ok(None),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(FileError::io("read", path, cause)),
    };
    let (Some((one_file, one_length, one_mode)), Some((two_file, two_length, two_mode))) =
        (open(one)?, open(two)?)
    else {
        return Ok(false);
    };
    if (one_length, one_mode) != (two_length, two_mode) {
        return Ok(false);
    }
    same_bytes(&one_file, &two_file).map_err(|cause| FileError::io("read", two, cause))
}

fn same_bytes(one: &File, two: &File) -> io::Result<bool> {
    const CHUNK: u64 = 64 * 1024;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        one.take(CHUNK).read_to_end(&mut left)?;
        two.take(CHUNK).read_to_end(&mut right)?;
        if left != right || left.is_empty() {
            return Ok(left == right);
        }
    }
}
