//! The files of a directory of manifests as they were read last, and what they say together.
//!
//! A file that cannot be used keeps what it said before: an unfinished or broken one must take no pod out of the mesh.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use facts::object::namespace_labels;
use facts::{Object, PodRef};
use podsource::{is_manifest, objects_in_file};

use super::ManifestError;
use crate::index::Index;
use crate::watch::list::tight;

/// Most files that are read: more than there are pods on any node, and few enough to be looked at.
const MAX_FILES: usize = 20_000;
/// Most names in the directory, manifests or not.
const MAX_NAMES: usize = 100_000;
/// Most pods and namespaces that are kept.
const MAX_OBJECTS: usize = 20_000;
/// Most bytes of all files whose objects are kept.
const MAX_BYTES: u64 = 64 << 20;

/// The files as they were read last.
#[derive(Debug, Default, Clone)]
pub(super) struct Files(BTreeMap<PathBuf, File>);

#[derive(Debug, Clone)]
struct File {
    stamp: Stamp,
    /// Pods and namespaces.
    objects: Vec<Arc<Object>>,
}

/// What differs when a file is another one or has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

/// How much is kept.
#[derive(Debug, Default)]
struct Sum {
    objects: usize,
    bytes: u64,
}

// === impl Files ===

impl Files {
    /// The directory as it is now, and what of it cannot be read. Reading happens off the async threads.
    pub(super) async fn look(&self, dir: &Path) -> io::Result<(Files, Vec<ManifestError>)> {
        let (before, dir) = (self.clone(), dir.to_owned());
        tokio::task::spawn_blocking(move || before.look_now(&dir)).await.map_err(io::Error::other)?
    }

    fn look_now(&self, dir: &Path) -> io::Result<(Files, Vec<ManifestError>)> {
        let mut files = BTreeMap::new();
        let (mut broken, mut sum) = (Vec::new(), Sum::default());
        for (number, entry) in std::fs::read_dir(dir)?.enumerate() {
            if number == MAX_NAMES {
                return Err(io::Error::other(format!("more than {MAX_NAMES} names")));
            }
            let path = entry?.path();
            if !is_manifest(&path) || path.is_dir() {
                continue;
            }
            if files.len() == MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} manifests")));
            }
            let Ok(stamp) = Stamp::of(&path) else { continue };
            let before = self.0.get(&path);
            let file = match before.filter(|file| file.stamp == stamp) {
                Some(file) => file.clone(),
                None => match read(&path, &stamp, &sum) {
                    Ok(objects) => File { stamp, objects },
                    Err(reason) => {
                        let objects = before.map(|file| file.objects.clone()).unwrap_or_default();
                        let stays =
                            if objects.is_empty() { "" } else { "; what it said before stays in force" };
                        broken.push(ManifestError::File { path: path.clone(), reason: reason + stays });
                        File { stamp, objects }
                    }
                },
            };
            sum.add(&file);
            files.insert(path, file);
        }
        Ok((Files(files), broken))
    }

    /// Takes back what was read of files that somebody is still writing: what they said before counts until they are whole.
    pub(super) fn without_unfinished(
        mut self,
        before: &Files,
        is_unfinished: impl Fn(&Path) -> bool,
    ) -> Self {
        self.0.retain(|path, file| {
            let old = before.0.get(path);
            if old.is_some_and(|old| old.stamp == file.stamp) || !is_unfinished(path) {
                return true;
            }
            // With the old stamp it is read again.
            old.is_some_and(|old| {
                file.clone_from(old);
                true
            })
        });
        self
    }

    /// Makes the index say what the files say; gives the pods that changed.
    pub(super) fn apply(&self, index: &mut Index) -> Vec<PodRef> {
        let pods = self.pods();
        let mut namespaces = self.namespaces();
        for pod in &pods {
            namespaces.entry(pod.namespace()).or_default();
        }
        index.begin_namespaces();
        let mut changed = HashSet::new();
        for (name, described) in namespaces {
            changed.extend(index.apply_namespace(name, &namespace_labels(name, described.cloned())));
        }
        index.begin_pods();
        for pod in &pods {
            changed.extend(index.apply_pod(pod.clone()));
        }
        changed.extend(index.commit_pods());
        changed.extend(index.commit_namespaces());
        changed.into_iter().collect()
    }

    /// The pods, each of a uid of its own: one that a copied manifest shares with another pod is not told from that by it.
    fn pods(&self) -> Vec<Arc<Object>> {
        let mut chosen = BTreeMap::new();
        // The plugin's own order: a file that is named after the pod before others, and these by name.
        for rank in [Rank::WholeName, Rank::Name, Rank::Other] {
            for (path, pod) in self.objects().filter(|(_, object)| object.is_pod()) {
                if Rank::of(path, pod) == rank {
                    chosen.entry((pod.namespace(), pod.name())).or_insert(pod);
                }
            }
        }
        let mut uids = HashSet::new();
        let pods = chosen.into_values().map(|pod| match uids.insert(pod.uid().unwrap_or_default()) {
            true => pod.clone(),
            false => Arc::new(Object::clone(pod).with_made_uid()),
        });
        pods.collect()
    }

    /// The namespaces that are described: by a file of the name before others, and by these in the order of their names.
    fn namespaces(&self) -> BTreeMap<&str, Option<&Object>> {
        let mut chosen = BTreeMap::new();
        for by_name in [true, false] {
            for (path, namespace) in self.objects().filter(|(_, object)| object.is_namespace()) {
                if (path.file_stem().and_then(|stem| stem.to_str()) == Some(namespace.name())) == by_name {
                    chosen.entry(namespace.name()).or_insert(Some(&**namespace));
                }
            }
        }
        chosen
    }

    fn objects(&self) -> impl Iterator<Item = (&Path, &Arc<Object>)> {
        self.0.iter().flat_map(|(path, file)| file.objects.iter().map(move |object| (&**path, object)))
    }
}

/// The objects of a file, or why they cannot be used.
fn read(path: &Path, stamp: &Stamp, sum: &Sum) -> Result<Vec<Arc<Object>>, String> {
    let objects = objects_in_file(path).map_err(|error| error.to_string())?;
    let refused = |reason: &str| Err(format!("read manifest {}: {reason}", path.display()));
    if objects.iter().any(|object| object.name().is_empty()) {
        return refused("an object has no metadata.name; add it");
    }
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    if sum.objects + objects.len() > MAX_OBJECTS {
        return refused(&format!(
            "with it there are more than {MAX_OBJECTS} pods and namespaces; remove manifests of pods that are gone"
        ));
    }
    if sum.bytes.saturating_add(stamp.size) > MAX_BYTES {
        return refused(&format!(
            "with it there are more than {} MiB of manifests; remove those of pods that are gone",
            MAX_BYTES >> 20
        ));
    }
    let kept = |object: Object| if object.is_pod() { object.completed() } else { object };
    Ok(objects.into_iter().map(|object| Arc::new(tight(kept(object)))).collect())
}

// === impl Sum ===

impl Sum {
    fn add(&mut self, file: &File) {
        if !file.objects.is_empty() {
            self.objects += file.objects.len();
            self.bytes = self.bytes.saturating_add(file.stamp.size);
        }
    }
}

// === impl Stamp ===

impl Stamp {
    /// Of the file, or of a link that leads to none.
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path).or_else(|_| std::fs::symlink_metadata(path))?;
        Ok(Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    /// `<namespace>_<name>`
    WholeName,
    /// `<name>`
    Name,
    Other,
}

impl Rank {
    fn of(path: &Path, pod: &Object) -> Self {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        match stem.split_once('_') {
            Some((namespace, name)) if namespace == pod.namespace() && name == pod.name() => Self::WholeName,
            None if stem == pod.name() => Self::Name,
            _ => Self::Other,
        }
    }
}
