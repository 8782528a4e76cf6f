//! The files of a directory of manifests as they were read last, and what they say together.
//!
//! A file that cannot be used keeps what it said before: an unfinished or broken one must take no pod out of the mesh.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use facts::{Namespace, Object, PodRef};
use podsource::{ManifestFileError, Written, is_manifest, written_in_file};

use super::ManifestError;
use crate::index::Index;
use crate::kind::{Kind, Namespaces, Pods};
use crate::news::{Item, News, ObjectKey, Uid};
use crate::watch::Wanted;
use crate::watch::read::{Named, namespace_of};

/// Most files that are read: more than there are pods on any node, and few enough to be looked at.
const MAX_FILES: usize = 20_000;
/// Most names in the directory, manifests or not.
const MAX_NAMES: usize = 100_000;
/// Most objects that are kept.
const MAX_OBJECTS: usize = 20_000;
/// Most bytes of all files whose objects are kept.
const MAX_BYTES: u64 = 64 << 20;

/// The files as they were read last.
#[derive(Debug, Clone)]
pub(in crate::watch) struct Files {
    files: BTreeMap<PathBuf, File>,
    readers: Arc<[Reader]>,
}

#[derive(Debug, Clone)]
struct File {
    stamp: Stamp,
    objects: Vec<Described>,
}

/// How objects of a kind are read. Those of other kinds are skipped.
#[derive(Debug)]
pub(in crate::watch) struct Reader {
    kind: &'static str,
    read: fn(&Written) -> Result<Option<Described>, ManifestFileError>,
}

/// An object that a file describes.
#[derive(Debug, Clone)]
pub(in crate::watch) struct Described {
    kind: &'static str,
    key: ObjectKey,
    uid: Uid,
    /// What is kept of it, as its store takes it.
    object: Arc<dyn Any + Send + Sync>,
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
    /// None, and which kinds are read of them.
    pub(super) fn new(wanted: &Wanted) -> Self {
        let own = [Reader::of::<Pods>(), Reader::of::<Namespaces>()];
        let readers = own.into_iter().chain(wanted.wishes().iter().map(|wish| wish.reader()));
        Self { files: BTreeMap::new(), readers: readers.collect() }
    }

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
            let before = self.files.get(&path);
            let file = match before.filter(|file| file.stamp == stamp) {
                Some(file) => file.clone(),
                None => match self.read(&path, &stamp, &sum) {
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
        Ok((Files { files, readers: self.readers.clone() }, broken))
    }

    /// Takes back what was read of files that somebody is still writing: what they said before counts until they are whole.
    pub(super) fn without_unfinished(
        mut self,
        before: &Files,
        is_unfinished: impl Fn(&Path) -> bool,
    ) -> Self {
        self.files.retain(|path, file| {
            let old = before.files.get(path);
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
        let named = pods.iter().map(|pod| pod.key.namespace.clone()).collect();
        let mut changed = HashSet::new();
        let mut namespaces = complete(self.namespaces(named));
        let last = namespaces.pop();
        for news in namespaces {
            changed.extend(index.take_namespaces(news));
        }
        for news in complete(pods) {
            changed.extend(index.take_pods(news));
        }
        // Namespaces that are no longer described go after their pods.
        changed.extend(last.into_iter().flat_map(|last| index.take_namespaces(last)));
        changed.into_iter().collect()
    }

    /// What the files say of a kind, as a list of all of its objects.
    pub(in crate::watch) fn news<T: Clone + Send + Sync + 'static>(&self, kind: &str) -> Vec<News<T>> {
        complete(self.chosen(kind))
    }

    /// The pods, each of a uid of its own: one that a copied manifest shares with another pod is not told from that by it.
    fn pods(&self) -> Vec<Item<Arc<Object>>> {
        let mut pods: Vec<Item<Arc<Object>>> = self.chosen(Pods::RESOURCE.kind);
        let mut uids = HashSet::new();
        for item in &mut pods {
            if !uids.insert(item.object.uid().unwrap_or_default().to_owned()) {
                item.object = Arc::new(Object::clone(&item.object).with_made_uid());
            }
            item.uid = Uid::new(item.object.uid().unwrap_or_default());
        }
        pods
    }

    /// The namespaces that are described, and those that pods name.
    fn namespaces(&self, mut named: BTreeSet<Box<str>>) -> Vec<Item<Arc<Namespace>>> {
        let mut described: Vec<Item<Arc<Namespace>>> = self.chosen(Namespaces::RESOURCE.kind);
        for item in &described {
            named.remove(&item.key.name);
        }
        described.extend(named.into_iter().filter_map(|name| {
            let key = ObjectKey { namespace: Box::default(), name };
            let object = Arc::new(Namespaces::completed(&key, Namespace::default()).ok()?);
            Some(Item { key, uid: Uid::default(), version: 0, object })
        }));
        described
    }

    /// The objects of a kind, of each name one: that of a file which is named after it before others, and of these by the files' names, which is
    /// the plugin's own order.
    fn chosen<T: Clone + Send + Sync + 'static>(&self, kind: &str) -> Vec<Item<T>> {
        let mut chosen: BTreeMap<&ObjectKey, (Rank, &Described)> = BTreeMap::new();
        // The same object may be kept in several ways.
        let of_kind = |described: &Described| described.kind == kind && described.object.is::<T>();
        for (path, described) in self.described().filter(|(_, described)| of_kind(described)) {
            let rank = Rank::of(path, &described.key);
            let known = chosen.get(&described.key).map(|(known, _)| *known);
            if known.is_none_or(|known| rank < known) {
                chosen.insert(&described.key, (rank, described));
            }
        }
        let item = |(_, Described { key, uid, object, .. }): &(Rank, &Described)| {
            let object = object.downcast_ref::<T>()?.clone();
            Some(Item { key: key.clone(), uid: *uid, version: 0, object })
        };
        chosen.values().filter_map(item).collect()
    }

    fn described(&self) -> impl Iterator<Item = (&Path, &Described)> {
        self.files.iter().flat_map(|(path, file)| file.objects.iter().map(move |object| (&**path, object)))
    }

    /// The objects of a file, or why they cannot be used.
    fn read(&self, path: &Path, stamp: &Stamp, sum: &Sum) -> Result<Vec<Described>, String> {
        let written = written_in_file(path, &|kind| self.readers.iter().any(|reader| reader.kind == kind));
        let written = written.map_err(|error| error.to_string())?;
        let refused = |reason: &str| Err(format!("read manifest {}: {reason}", path.display()));
        let mut objects = Vec::new();
        for one in &written {
            for reader in self.readers.iter().filter(|reader| reader.kind == one.kind()) {
                match (reader.read)(one).map_err(|error| error.to_string())? {
                    Some(object) => objects.push(object),
                    None => return refused("an object has no metadata.name; add it"),
                }
            }
        }
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        if sum.objects + objects.len() > MAX_OBJECTS {
            return refused(&format!(
                "with this file there are more than {MAX_OBJECTS} objects; remove the manifests of deleted objects"
            ));
        }
        if sum.bytes.saturating_add(stamp.size) > MAX_BYTES {
            return refused(&format!(
                "with this file there are more than {} MiB of manifests; remove those of deleted objects",
                MAX_BYTES >> 20
            ));
        }
        Ok(objects)
    }
}

/// A list of all objects of a kind, as it is told.
fn complete<T>(items: Vec<Item<T>>) -> Vec<News<T>> {
    let items = items.into_iter().map(News::Listed);
    std::iter::once(News::ListBegins).chain(items).chain([News::ListEnds(0)]).collect()
}

// === impl Reader ===

impl Reader {
    pub(in crate::watch) fn of<K: Kind>() -> Self {
        Self { kind: K::RESOURCE.kind, read: read::<K> }
    }
}

/// What is kept of an object; nothing for one without a name.
fn read<K: Kind>(written: &Written) -> Result<Option<Described>, ManifestFileError> {
    let Named { metadata } = written.read()?;
    let Some(name) = metadata.name.filter(|name| !name.is_empty()) else { return Ok(None) };
    let key = ObjectKey { namespace: namespace_of::<K>(metadata.namespace), name };
    let object = K::completed(&key, written.read::<K::Object>()?);
    let object = object.map_err(|lack| {
        written.refuse(format!("the {} {:?} {lack}", written.kind().to_lowercase(), &*key.name))
    })?;
    let uid = Uid::new(metadata.uid.as_deref().unwrap_or_default());
    let object: Arc<dyn Any + Send + Sync> = Arc::new(Arc::new(K::kept(object)));
    Ok(Some(Described { kind: K::RESOURCE.kind, key, uid, object }))
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

/// How well a file's name says what it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// `<namespace>_<name>`
    WholeName,
    /// `<name>`
    Name,
    Other,
}

impl Rank {
    fn of(path: &Path, key: &ObjectKey) -> Self {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        match stem.split_once('_') {
            Some((namespace, name)) if *namespace == *key.namespace && *name == *key.name => Self::WholeName,
            None if *stem == *key.name => Self::Name,
            _ => Self::Other,
        }
    }
}
