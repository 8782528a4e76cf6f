//! Pods from a directory of Kubernetes manifests, the source that needs no cluster.
//!
//! The file that is named after the pod is tried first (`<namespace>_<name>` before `<name>`), so that the usual cost is one file,
//! however large the directory. Otherwise all files are searched in the order of their names and the first hit wins.
//!
//! A broken file that certainly is about the pod, by its name or by what can be read of it, ends the search: another file that
//! describes the pod is likely an old one, and by its facts the pod could pass without capture. Any other broken file is reported only
//! when the pod is found nowhere else: one bad manifest must not stop the other pods of the node, but when nothing describes the pod,
//! the broken file is the likeliest reason and more useful than "not found".
//!
//! Objects of `kind: Namespace` in the same files give the labels of namespaces ([`namespaces`]).

mod document;
mod file;
mod namespaces;
#[cfg(test)]
mod tests;
mod written;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use capture::Pod;
use facts::PodRef;

use crate::error::{Cause, Error};
use crate::{MAX_BYTES, PodSource};
use document::{Broken, ManifestFormat, WantedManifest};
use facts::object::Object;
use trusted::Links;

pub use file::{ManifestFile, ManifestFileError, written_in_file, written_in_named_file};
pub use written::Written;

/// Whether a directory of manifests is searched for pods in a file of this name: `*.yaml`, `*.yml`, `*.json`, not hidden.
pub fn is_manifest(path: &Path) -> bool {
    format_of(path).is_some()
}

/// Extensions in the order in which they are tried.
const EXTENSIONS: [(&str, ManifestFormat); 3] =
    [("yaml", ManifestFormat::Yaml), ("yml", ManifestFormat::Yaml), ("json", ManifestFormat::Json)];

/// A directory of `*.yaml`, `*.yml` and `*.json` files with objects of `kind: Pod` and `kind: Namespace`, or lists of them.
#[derive(Debug, Clone)]
pub struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    /// Nothing is read before the first question, and everything is read anew for each.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

impl PodSource for Manifests {
    fn pod(&self, id: &PodRef) -> Result<Pod, Error> {
        let namespace = if id.namespace.is_empty() { "default" } else { &id.namespace };
        let wanted = WantedManifest { namespace, name: &id.name };
        Search { dir: &self.dir, wanted, looked_at: Vec::new(), broken: Vec::new() }
            .run()
            .and_then(|object| Ok(object.into_pod(id)?))
            .map_err(|cause| Error::new(format!("get pod {namespace}/{}", id.name), self.origin(), cause))
    }

    fn ready(&self) -> Result<(), Error> {
        match std::fs::read_dir(&self.dir) {
            Ok(_) => Ok(()),
            Err(error) => {
                let cause = Cause::Unreadable { path: self.dir.clone(), reason: error.to_string() };
                Err(Error::new("serve pods", self.origin(), cause))
            }
        }
    }
}

impl Manifests {
    fn origin(&self) -> String {
        format!("manifests in {}", self.dir.display())
    }
}

/// One search: what is wanted and what was met on the way.
struct Search<'a> {
    dir: &'a Path,
    wanted: WantedManifest<'a>,
    looked_at: Vec<PathBuf>,
    broken: Vec<Cause>,
}

impl Search<'_> {
    fn run(mut self) -> Result<Object, Cause> {
        if self.wanted.name.is_empty() {
            return Err(Cause::InvalidName(String::new()));
        }
        if let Some(object) = self.named_files()? {
            return Ok(object);
        }
        if let Some(object) = self.all_files()? {
            return Ok(object);
        }
        let more = self.broken.len().saturating_sub(1);
        Err(match self.broken.into_iter().next() {
            Some(Cause::BrokenManifest { path, line, column, reason, .. }) => {
                Cause::BrokenManifest { path, line, column, reason, more }
            }
            Some(cause) => cause,
            None => Cause::NotInManifests { dir: self.dir.into(), files: self.looked_at.len() },
        })
    }

    /// The files whose name says that they describe this pod.
    fn named_files(&mut self) -> Result<Option<Object>, Cause> {
        let WantedManifest { namespace, name } = self.wanted;
        if !is_file_name_part(namespace) || !is_file_name_part(name) {
            return Ok(None);
        }
        for stem in [format!("{namespace}_{name}"), name.to_owned()] {
            for (extension, format) in EXTENSIONS {
                let path = self.dir.join(format!("{stem}.{extension}"));
                let Some(text) = read(&path)? else { continue };
                let found =
                    self.wanted.expect(&text, format).map_err(|broken| broken_manifest(&path, broken))?;
                if found.is_some() {
                    return Ok(found);
                }
                self.looked_at.push(path);
            }
        }
        Ok(None)
    }

    fn all_files(&mut self) -> Result<Option<Object>, Cause> {
        let mut files = files_of(self.dir)?;
        files.retain(|(path, _)| !self.looked_at.contains(path));
        for (path, format) in files {
            let found = self.file(&path, format)?;
            if found.is_some() {
                return Ok(found);
            }
            self.looked_at.push(path);
        }
        Ok(None)
    }

    /// The pod, if this file describes it. Trouble is noted and not returned when another file may still have the pod.
    fn file(&mut self, path: &Path, format: ManifestFormat) -> Result<Option<Object>, Cause> {
        let found = match read(path) {
            Ok(Some(text)) => self.wanted.find(&text, format),
            Ok(None) => Ok(None),
            Err(cause) => {
                self.broken.push(cause);
                Ok(None)
            }
        };
        match found {
            Err(broken) if !broken.is_it => {
                self.broken.push(broken_manifest(path, broken));
                Ok(None)
            }
            found => found.map_err(|broken| broken_manifest(path, broken)),
        }
    }
}

/// The manifests of a directory, in the order of their names.
fn files_of(dir: &Path) -> Result<Vec<(PathBuf, ManifestFormat)>, Cause> {
    let unreadable = |error: io::Error| Cause::Unreadable { path: dir.into(), reason: error.to_string() };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if let Some(format) = format_of(&path) {
            files.push((path, format));
        }
    }
    files.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(files)
}

fn format_of(path: &Path) -> Option<ManifestFormat> {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().filter(|_| !hidden)?;
    EXTENSIONS.iter().find(|(known, _)| extension == *known).map(|(_, format)| *format)
}

fn broken_manifest(path: &Path, broken: Broken) -> Cause {
    let Broken { line, column, reason, is_it: _ } = broken;
    Cause::BrokenManifest { path: path.into(), line, column, reason, more: 0 }
}

/// The text of a manifest; nothing if the file does not exist (any more).
fn read(path: &Path) -> Result<Option<String>, Cause> {
    let bytes = match trusted::read(path, Links::Followed, MAX_BYTES) {
        Err(error) if error.is_not_found() => return Ok(None),
        bytes => bytes?,
    };
    let not_text = |_| Cause::Unreadable { path: path.into(), reason: NOT_TEXT.into() };
    String::from_utf8(bytes).map(Some).map_err(not_text)
}

/// Whether the text, which comes from the runtime's arguments, can be part of a file name that stays in the directory.
fn is_file_name_part(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !text.is_empty() && text.len() <= 253 && !text.starts_with('.') && text.chars().all(allowed)
}

/// The text of a regular file that a person has named, whoever can write it. Anything else, such as a named pipe, could keep the caller waiting
/// for ever.
fn read_any(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    read_stream(File::open(path)?)
}

/// The text of a stream that a person has named.
fn read_stream(stream: impl Read) -> io::Result<String> {
    let mut text = Vec::new();
    stream.take(MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
    if text.len() > MAX_BYTES {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_BYTES >> 20)));
    }
    String::from_utf8(text).map_err(|_| io::Error::other(NOT_TEXT))
}

/// The text of a file that decides over capture, so no other user may write it.
fn read_believed(path: &Path) -> io::Result<String> {
    let bytes = trusted::read(path, Links::Followed, MAX_BYTES)?;
    String::from_utf8(bytes).map_err(|_| io::Error::other(NOT_TEXT))
}

const NOT_TEXT: &str = "not UTF-8 text";
