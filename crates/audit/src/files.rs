//! The files of one chain: how they are called, in which order they are, and what is in them.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::chain::MAX_LINE_BYTES;

/// What is packed ends so.
const PACKED: &str = "gz";
/// Of a file that is being packed.
const UNFINISHED: &str = "tmp";

/// How the files of a chain are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// `NAME.jsonl` is written; those before are `NAME-<number of their first line>-<time of their end>.jsonl`, packed or not.
    Rotated(String),
    /// `NAME-YYYYMMDD.jsonl`, one for each day, by UTC.
    Daily(String),
}

/// The files of one chain in one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSet {
    /// Where they are.
    pub dir: PathBuf,
    /// How they are called.
    pub naming: Naming,
}

// === impl FileSet ===

impl FileSet {
    /// The chain whose newest file has this path: `DIR/NAME.jsonl`.
    ///
    /// # Errors
    /// The path has no name that ends so.
    pub fn of(path: &Path) -> io::Result<Self> {
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, "the path of a file NAME.jsonl is needed");
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jsonl"));
        let name = name.filter(|name| !name.is_empty()).ok_or_else(bad)?.to_owned();
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self { dir: dir.to_owned(), naming: Naming::Rotated(name) })
    }

    fn name(&self) -> &str {
        let (Naming::Rotated(name) | Naming::Daily(name)) = &self.naming;
        name
    }

    /// The file that is written at this moment.
    pub fn live(&self, now: SystemTime) -> PathBuf {
        match &self.naming {
            Naming::Rotated(name) => self.dir.join(format!("{name}.jsonl")),
            Naming::Daily(name) => self.dir.join(format!("{name}-{}.jsonl", &digits_of(now)[..8])),
        }
    }

    /// The name of a file that is not written any more, by the number of its first line. Nothing where names stay.
    pub(crate) fn rotated(&self, first: u64, now: SystemTime) -> Option<PathBuf> {
        let Naming::Rotated(name) = &self.naming else { return None };
        Some(self.dir.join(format!("{name}-{first:012}-{}.jsonl", digits_of(now))))
    }

    /// Those that are there, the oldest first.
    ///
    /// # Errors
    /// The directory cannot be read. One that is not there has no files.
    pub fn list(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match self.dir.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            // A link or a pipe of such a name leads elsewhere.
            if !entry.file_type()?.is_file() {
                continue;
            }
            let name = entry.file_name();
            if let Some(order) = name.to_str().and_then(|name| self.order(name)) {
                found.push((order, self.dir.join(&name)));
            }
        }
        found.sort();
        // Between the packing of a file and its removal it is there twice.
        found.dedup_by(|(order, later), (before, path)| {
            order == before && is_packed(later) != is_packed(path)
        });
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    /// Where a file stands among those of the chain; nothing for files of others.
    fn order(&self, file: &str) -> Option<(bool, String)> {
        let rest = file.strip_prefix(self.name())?;
        let rest = rest.strip_suffix(".gz").unwrap_or(rest).strip_suffix(".jsonl")?;
        let number = rest.strip_prefix('-');
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match (&self.naming, number) {
            (Naming::Rotated(_), None) if rest.is_empty() => Some((true, String::new())),
            (Naming::Rotated(_), Some(number)) => {
                let (first, time) = number.split_once('-')?;
                (is_number(first) && is_number(time)).then(|| (false, number.to_owned()))
            }
            (Naming::Daily(_), Some(day)) if is_number(day) && day.len() == 8 => {
                Some((false, day.to_owned()))
            }
            _ => None,
        }
    }

    /// Removes what a packing left that did not end.
    pub(crate) fn remove_unfinished(&self) -> io::Result<()> {
        for entry in self.dir.read_dir()? {
            let path = entry?.path();
            let is_ours = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                let of = name.strip_suffix(".tmp").and_then(|name| self.order(name));
                of.is_some()
            });
            if is_ours {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// `YYYYMMDDHHMMSS`, by UTC.
fn digits_of(now: SystemTime) -> String {
    telemetry::time_text(now).chars().filter(char::is_ascii_digit).take(14).collect()
}

/// Whether a file is packed.
pub fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == PACKED)
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLine {
    /// Its text, without the newline.
    pub text: String,
    /// Whether there was a newline: without, it was not written to its end.
    pub is_whole: bool,
}

/// The lines of a file, in their order.
///
/// # Errors
/// It cannot be opened.
pub fn lines(path: &Path) -> io::Result<impl Iterator<Item = io::Result<FileLine>> + use<>> {
    let file = File::open(path)?;
    let source: Box<dyn io::Read> =
        if is_packed(path) { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
    let mut reader = BufReader::with_capacity(256 << 10, source);
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        match reader.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line) {
            Err(error) => return Some(Err(error)),
            Ok(0) => return None,
            Ok(_) => {}
        }
        let is_whole = line.last() == Some(&b'\n');
        if is_whole {
            line.pop();
        }
        Some(Ok(FileLine { text: String::from_utf8_lossy(&line).into_owned(), is_whole }))
    }))
}

/// Packs a file: whoever lists finds the whole of it at any time. Its owner, mode and times stay.
///
/// # Errors
/// Any of it failed; the file is as it was.
pub(crate) fn pack(path: &Path) -> io::Result<()> {
    let packed = PathBuf::from(format!("{}.{PACKED}", path.display()));
    let unfinished = PathBuf::from(format!("{}.{UNFINISHED}", packed.display()));
    let work = || -> io::Result<()> {
        let mut source = File::open(path)?;
        let of = source.metadata()?;
        let target = crate::writer::create(&unfinished, None)?;
        std::os::unix::fs::fchown(&target, None, Some(std::os::unix::fs::MetadataExt::gid(&of)))?;
        let mut packer = GzEncoder::new(target, flate2::Compression::fast());
        io::copy(&mut source, &mut packer)?;
        let mut target = packer.finish()?;
        target.flush()?;
        target.set_modified(of.modified()?)?;
        target.sync_all()?;
        std::fs::rename(&unfinished, &packed)?;
        std::fs::remove_file(path)
    };
    let done = work();
    if done.is_err() {
        // On a full disk what is written of it would be in the way.
        let _ = std::fs::remove_file(&unfinished);
    }
    done
}
