//! Files read within bounds and replaced as a whole.

pub(crate) mod adopt;

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, Gid, OFlags, RenameFlags, Uid, XattrFlags};
use rustix::io::Errno;
use tempfile::{NamedTempFile, TempPath};

/// Largest file that is read as a whole.
pub(crate) const MAX_BYTES: u64 = 1 << 20;

/// Between a file's name and random characters, in the name of a file that is yet to be renamed. Upstream's are
/// `<name>.tmp.<digits>`; what is ours can be told apart and removed.
const TEMP_MARK: &str = ".tmp.istio-";

/// Random characters behind the mark.
const RANDOM: usize = 16;

const LABEL: &str = "security.selinux";

/// Longest SELinux label that is kept.
const MAX_LABEL: usize = 512;

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{operation} {path}: {cause}{hint}", path = path.display(), hint = hint(cause))]
    Io {
        /// Such as `read`.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A bound that keeps memory small.
    #[error("read {path}: the file is larger than {MAX_BYTES} bytes, the limit; replace it", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A directory, a pipe, a device.
    #[error("read {path}: not a regular file", path = path.display())]
    NotRegular {
        /// What is no file.
        path: PathBuf,
    },
    /// What was written is not what is read back.
    #[error("write {path}: the file system gave back other bytes than were written; nothing was changed", path = path.display())]
    Corrupt {
        /// The file that was to be replaced.
        path: PathBuf,
    },
}

fn hint(cause: &io::Error) -> &'static str {
    match Errno::from_io_error(cause) {
        Some(Errno::ROFS) => {
            "; on this platform the directory is another one: set global.platform of the chart, or the directories themselves"
        }
        Some(Errno::NOSPC | Errno::DQUOT) => "; the old state is kept: free some space",
        _ => "",
    }
}

impl FileError {
    pub(crate) fn io(operation: &'static str, path: &Path, cause: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.to_owned(), cause: cause.into() }
    }

    /// The file or directory.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::TooLarge { path }
            | Self::NotRegular { path }
            | Self::Corrupt { path } => path,
        }
    }

    /// Whether the caller may not look at it.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

/// A file's bytes, and what its replacement takes over.
#[derive(Debug)]
pub(crate) struct FileContent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) modified: Option<SystemTime>,
    attributes: FileAttributes,
}

/// What a new file gets.
#[derive(Debug, Clone)]
pub(crate) struct FileAttributes {
    mode: u32,
    owner: Option<(u32, u32)>,
    label: Option<Vec<u8>>,
}

// === impl FileContent ===

impl FileContent {
    /// Reads a regular file of at most [`MAX_BYTES`]. A symbolic link is followed.
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let failed = |cause| FileError::io("read", path, cause);
        // a pipe must not make us wait for its writer
        let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(FileError::NotRegular { path: path.to_owned() });
        }
        let mut bytes = Vec::new();
        (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(FileError::TooLarge { path: path.to_owned() });
        }
        let mut label = vec![0; MAX_LABEL];
        let length = rustix::fs::fgetxattr(&file, LABEL, &mut label[..]).ok();
        let attributes = FileAttributes {
            mode: metadata.mode() & 0o7777,
            owner: Some((metadata.uid(), metadata.gid())),
            label: length.map(|length| label[..length.min(MAX_LABEL)].to_vec()),
        };
        Ok(Self { bytes, modified: metadata.modified().ok(), attributes })
    }

    /// As [`FileContent::read`], `None` when there is no such file.
    pub(crate) fn read_if_there(path: &Path) -> Result<Option<Self>, FileError> {
        match Self::read(path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Mode, owner and SELinux label of the file.
    pub(crate) fn attributes(&self) -> FileAttributes {
        self.attributes.clone()
    }

    pub(crate) fn mode(&self) -> u32 {
        self.attributes.mode
    }
}

// === impl FileAttributes ===

impl FileAttributes {
    /// The mode, and the owner that new files of this process have.
    pub(crate) fn mode(mode: u32) -> Self {
        Self { mode, owner: None, label: None }
    }

    fn apply(&self, file: &File) -> io::Result<()> {
        // before the owner: without CAP_FOWNER a mode can only be set on what is one's own
        file.set_permissions(Permissions::from_mode(self.mode))?;
        let metadata = file.metadata()?;
        if let Some((uid, gid)) = self.owner
            && (uid, gid) != (metadata.uid(), metadata.gid())
        {
            match rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
                // Without CAP_CHOWN the file is ours until it takes the place of the one whose owner this is: see `adopt`.
                Ok(()) | Err(Errno::PERM) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        if let Some(label) = &self.label {
            // A kernel without SELinux, or a policy that labels by directory: then the label is already right.
            let _ = rustix::fs::fsetxattr(file, LABEL, label, XattrFlags::empty());
        }
        Ok(())
    }
}

/// Makes a complete, synced, closed file beside `target`, from what `fill` writes. It is removed when dropped.
pub(crate) fn stage(
    target: &Path,
    attributes: &FileAttributes,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<TempPath, FileError> {
    let failed = |cause| FileError::io("write", target, cause);
    let open = |path: &Path| OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut temp = beside(target, open).map_err(failed)?;
    fill(temp.as_file_mut()).map_err(failed)?;
    attributes.apply(temp.as_file()).map_err(failed)?;
    temp.as_file().sync_all().map_err(failed)?;
    Ok(temp.into_temp_path())
}

/// Gives the file `of` a second name beside `target`; `None` when there is no such file. A file system that cannot do that gets a copy.
pub(crate) fn stage_link(of: &Path, target: &Path) -> Result<Option<TempPath>, FileError> {
    match beside(target, |path| std::fs::hard_link(of, path)) {
        Ok(link) => Ok(Some(link.into_temp_path())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause)
            if matches!(
                Errno::from_io_error(&cause),
                Some(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK)
            ) =>
        {
            let content = FileContent::read(of)?;
            stage_bytes(target, &content.attributes, &content.bytes).map(Some)
        }
        Err(cause) => Err(FileError::io("link", of, cause)),
    }
}

/// Makes something with a temporary name beside `target`.
fn beside<F>(target: &Path, make: impl FnMut(&Path) -> io::Result<F>) -> io::Result<NamedTempFile<F>> {
    let mut prefix = target.file_name().unwrap_or_default().to_owned();
    prefix.push(TEMP_MARK);
    tempfile::Builder::new().prefix(&prefix).rand_bytes(RANDOM).make_in(directory(target), make)
}

/// As [`stage`] for bytes at hand, which are read back: a configuration that the file system garbles is never seen.
pub(crate) fn stage_bytes(
    target: &Path,
    attributes: &FileAttributes,
    bytes: &[u8],
) -> Result<TempPath, FileError> {
    let temp = stage(target, attributes, |file| io::Write::write_all(file, bytes))?;
    if FileContent::read(&temp)?.bytes != bytes {
        return Err(FileError::Corrupt { path: target.to_owned() });
    }
    Ok(temp)
}

/// Renames `temp` to `target`, whatever is there.
pub(crate) fn place(temp: &TempPath, target: &Path) -> Result<(), FileError> {
    // Two names of one file are both left by a rename; then the temporary one goes with `temp`.
    std::fs::rename(temp, target).map_err(|cause| FileError::io("replace", target, cause))?;
    sync_directory(target)
}

/// Renames `temp` to `target`, which must not exist yet; false if it does.
pub(crate) fn place_new(temp: &Path, target: &Path) -> Result<bool, FileError> {
    match rustix::fs::renameat_with(CWD, temp, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => sync_directory(target).map(|()| true),
        Err(Errno::EXIST) => Ok(false),
        Err(cause) => Err(FileError::io("create", target, cause)),
    }
}

/// Lets `target`, which is expected to hold `old`, become the file `temp`. False if it holds something else, which then stays.
///
/// The two names are exchanged, so that what is displaced can still be looked at: no writer in between is lost. A file system that
/// cannot exchange gets the comparison just before the rename.
pub(crate) fn swap(temp: &Path, target: &Path, old: &[u8]) -> Result<bool, FileError> {
    const ROUNDS: usize = 100;
    let failed = |cause| FileError::io("replace", target, cause);
    let exchange = || rustix::fs::renameat_with(CWD, temp, CWD, target, RenameFlags::EXCHANGE);
    let mut placed = identity(temp)?;
    match exchange() {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            return match FileContent::read_if_there(target)? {
                Some(content) if content.bytes == old => {
                    std::fs::rename(temp, target).map_err(failed)?;
                    sync_directory(target).map(|()| true)
                }
                _ => Ok(false),
            };
        }
        Err(cause) => return Err(failed(cause.into())),
    }
    if FileContent::read(temp).is_ok_and(|displaced| displaced.bytes == old) {
        sync_directory(target)?;
        adopt::keep_owner(temp, target)?;
        std::fs::remove_file(temp).map_err(failed)?;
        return Ok(true);
    }
    // Back with it, whatever it is. If what comes out then is not what went in before, it is newer and goes back in turn.
    let mut held = identity(temp)?;
    for _ in 0..ROUNDS {
        match exchange() {
            Ok(()) => {}
            // removed meanwhile, which is the newest that was wanted
            Err(Errno::NOENT) => break,
            Err(cause) => return Err(failed(cause.into())),
        }
        let displaced = identity(temp)?;
        if displaced == placed {
            break;
        }
        placed = std::mem::replace(&mut held, displaced);
    }
    Ok(false)
}

/// Device and inode: which file a name is of, whatever it holds.
pub(crate) fn identity(path: &Path) -> Result<(u64, u64), FileError> {
    let metadata = std::fs::symlink_metadata(path).map_err(|cause| FileError::io("read", path, cause))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a file if it still holds `bytes`; false if it does not. A file that is not there is removed.
///
/// It is renamed before it is looked at, so that what others put there in between can go back.
pub(crate) fn remove_if(path: &Path, bytes: &[u8]) -> Result<bool, FileError> {
    let temp = match beside(path, |temp| std::fs::rename(path, temp)) {
        Ok(temp) => temp.into_temp_path(),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(cause) => return Err(FileError::io("remove", path, cause)),
    };
    let is_same = FileContent::read(&temp).is_ok_and(|content| content.bytes == bytes);
    if is_same {
        drop(temp);
        sync_directory(path)?;
    } else {
        // a still newer one may be there already
        place_new(&temp, path)?;
    }
    Ok(is_same)
}

/// Removes a file; false if there was none.
pub(crate) fn remove(path: &Path) -> Result<bool, FileError> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_directory(path).map(|()| true),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(FileError::io("remove", path, cause)),
    }
}

/// Makes names in the directory of `path` durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = directory(path);
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|cause| FileError::io("sync", directory, cause))
}

/// Whether the name is of a file of ours that a killed process left, or that is being written now.
pub(crate) fn is_temp(name: &OsStr) -> bool {
    name.to_str().and_then(|name| name.rsplit_once(TEMP_MARK)).is_some_and(|(_, random)| {
        random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Names in a directory, sorted; none if the directory does not exist.
pub(crate) fn names(directory: &Path) -> Result<Vec<OsString>, FileError> {
    let failed = |cause| FileError::io("list", directory, cause);
    let entries = match std::fs::read_dir(directory) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.file_name())).collect();
    let mut names = names.map_err(failed)?;
    names.sort();
    Ok(names)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
