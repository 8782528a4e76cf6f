//! The directory of facts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use facts::Facts;
use rundir::facts_file;
use trusted::Links;

use super::Names;
use crate::watch::Cluster;

/// What a file is called while it is written; only one is at a time. Pods' files end in `.json`.
const UNFINISHED: &str = "unfinished";

/// Longest file of facts that is read, in bytes: an object in etcd has at most 1.5 MiB.
const MAX_FILE: usize = 2 << 20;
/// The most files that are read. A node has some hundred pods.
const MAX_FILES: usize = 16 << 10;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the facts in {path} cannot be used and are ignored: {cause}", path = path.display())]
pub struct Unusable {
    path: PathBuf,
    cause: io::Error,
}

#[derive(Debug)]
pub(super) struct StoreFiles {
    dir: PathBuf,
    /// A hash of what each file holds, so that only what differs is written.
    written: BTreeMap<String, u64>,
    hasher: RandomState,
}

/// What could not be done.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) names: Names,
    pub(super) sweep: bool,
    /// The first error.
    pub(super) cause: Option<io::Error>,
}

impl StoreFiles {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, written: BTreeMap::new(), hasher: RandomState::new() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the files of these pods say what the index does, or of all pods when `sweep` is set, and then removes those of others.
    pub(super) fn update(&mut self, cluster: &Cluster, mut names: Names, mut sweep: bool) -> Left {
        match self.ensure_dir() {
            // somebody removed it
            Ok(true) => (sweep, self.written) = (true, BTreeMap::new()),
            Ok(false) => {}
            Err(error) => return Left { names, sweep, cause: Some(error) },
        }
        if sweep {
            let index = cluster.index();
            names.extend(index.pods().map(|pod| (pod.namespace().to_owned(), pod.name().to_owned())));
        }
        let mut left = Left::default();
        for (namespace, name) in names {
            let Some(file) = facts_file(&namespace, &name) else { continue };
            let facts = cluster.index().facts(&namespace, &name);
            let done = match facts {
                // to a Vec, strings and maps of strings always serialize
                Some(facts) => serde_json::to_vec(&facts)
                    .map_err(io::Error::other)
                    .and_then(|content| self.write(&file, &content)),
                None => self.remove(&file),
            };
            if let Err(error) = done {
                left.names.insert((namespace, name));
                left.cause.get_or_insert(error);
            }
        }
        if sweep && let Err(error) = self.sweep(cluster) {
            left.sweep = true;
            left.cause.get_or_insert(error);
        }
        left
    }

    /// Whether the directory had to be made.
    fn ensure_dir(&self) -> io::Result<bool> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            Err(_) => {}
        }
        let metadata = fs::symlink_metadata(&self.dir)?;
        if !metadata.is_dir() {
            return Err(io::Error::other("is no directory"));
        }
        if metadata.permissions().mode() & 0o777 != 0o700 {
            fs::set_permissions(&self.dir, Permissions::from_mode(0o700))?;
        }
        // Plugins would not believe what is in it.
        trusted::check_directory(&self.dir)?;
        Ok(false)
    }

    fn write(&mut self, file: &str, content: &[u8]) -> io::Result<()> {
        let hash = self.hasher.hash_one(content);
        if self.written.get(file) == Some(&hash) {
            return Ok(());
        }
        let path = self.dir.join(file);
        // An earlier agent may have written the same.
        if self.written.contains_key(file) || !holds(&path, content) {
            trusted::replace(&path, &self.dir.join(UNFINISHED), content)?;
        }
        self.written.insert(file.to_owned(), hash);
        Ok(())
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(file)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => {
                self.written.remove(file);
                Ok(())
            }
        }
    }

    /// Removes the files of pods that the index does not have.
    fn sweep(&mut self, cluster: &Cluster) -> io::Result<()> {
        let known: BTreeSet<String> =
            cluster.index().pods().filter_map(|pod| facts_file(pod.namespace(), pod.name())).collect();
        let mut failed = None;
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let ours = name == UNFINISHED || name.ends_with(".json");
            if ours
                && !known.contains(name)
                && let Err(error) = self.remove(name)
            {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The facts in a directory, and why others cannot be used. Only files that nobody else can write count.
pub(super) fn read_all(dir: &Path) -> (Vec<Facts>, Vec<Unusable>) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return (Vec::new(), Vec::new()),
        Err(cause) => return (Vec::new(), vec![Unusable { path: dir.to_owned(), cause }]),
    };
    let (mut all, mut unusable) = (Vec::new(), Vec::new());
    for entry in entries.flatten().take(MAX_FILES) {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read_one(&path) {
            Ok(facts) => all.push(facts),
            Err(cause) => unusable.push(Unusable { path, cause }),
        }
    }
    (all, unusable)
}

fn read_one(path: &Path) -> io::Result<Facts> {
    let text = trusted::read(path, Links::Refused, MAX_FILE)?;
    let facts: Facts = serde_json::from_slice(&text)?;
    let own_name = facts_file(facts.pod.namespace(), facts.pod.name());
    if own_name.as_deref() != path.file_name().and_then(|name| name.to_str()) {
        return Err(io::Error::other("it is of another pod than its name says"));
    }
    Ok(facts)
}

/// Whether plugins would read just this there.
fn holds(path: &Path, content: &[u8]) -> bool {
    let length = fs::metadata(path).map(|metadata| metadata.len());
    length.is_ok_and(|length| length == content.len() as u64)
        && trusted::read(path, Links::Refused, content.len()).is_ok_and(|old| old == content)
}
