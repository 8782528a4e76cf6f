//! A directory of manifests, watched with inotify.
//!
//! Any event leads to a look at the whole directory, and files whose identity, size or time of change differ are read again. So nothing
//! depends on the order of events, on whether a file is written in place, renamed or linked to, nor on the kernel's queue of events.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use facts::Object;
use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};
use podsource::{FileError, is_manifest, objects_in_file};

use super::list::tight;
use super::{Reporter, Standing, WatchError, What};

/// Writers make several changes in a row; they are read together, once there was none for so long, or after a while of changes.
const CALM: Duration = Duration::from_millis(30);
const WHILE: Duration = Duration::from_millis(500);

/// A look without an event, for what inotify does not tell: files behind links that change in place, network file systems.
const LOOK: Duration = Duration::from_secs(60);

/// Most files that are read: more than there are pods on any node, and few enough to be looked at.
const MAX_FILES: usize = 20_000;

/// A directory, or a file in it, that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The directory cannot be read or watched.
    #[error("watch manifests in {}: {reason}; create the directory or correct the pod source", .dir.display())]
    Dir {
        /// Which.
        dir: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// A file cannot be read. The pods that it described before stay.
    #[error("{reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// The whole message, which names the file.
        reason: String,
    },
}

/// Watches for ever.
pub(super) async fn watch(dir: &Path, reporter: &Reporter<'_>) -> Infallible {
    let mut standing = Standing::new(What::Manifests, reporter, None);
    let mut files = Files::default();
    loop {
        let error = match follow(dir, &mut files, &mut standing).await {
            Ok(()) => continue,
            Err(error) => error.to_string(),
        };
        standing.failed(ManifestError::Dir { dir: dir.into(), reason: error }).await;
    }
}

/// Reads the directory and follows its changes until it is another one under the same name, or an error.
async fn follow(dir: &Path, files: &mut Files, standing: &mut Standing<'_>) -> io::Result<()> {
    let identity = identity(dir)?;
    let mut events = Events::of(dir)?;
    loop {
        let (read, broken) = files.look(dir).await?;
        *files = read;
        apply(files, standing.reporter);
        standing.works();
        for error in broken {
            standing.reporter.unreadable(What::Manifests, WatchError::Manifests(error));
        }
        if let Ok(event) = tokio::time::timeout(LOOK, events.next()).await {
            event?;
        }
        let calm = async { while tokio::time::timeout(CALM, events.next()).await.is_ok() {} };
        // over or not, what there is now is read
        let _ = tokio::time::timeout(WHILE, calm).await;
        if self::identity(dir)? != identity {
            return Ok(());
        }
    }
}

/// Device and inode: what tells a directory from its successor.
fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(dir)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Events of the directory and, for its being replaced or a link's being turned, those of its own name in the one that it is in.
struct Events {
    stream: EventStream<[u8; 4096]>,
    parent: Option<(WatchDescriptor, OsString)>,
}

impl Events {
    fn of(dir: &Path) -> io::Result<Self> {
        let names = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE;
        let itself = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        let inotify = Inotify::init()?;
        inotify.watches().add(dir, names | itself | WatchMask::CLOSE_WRITE | WatchMask::ATTRIB)?;
        let dir = std::path::absolute(dir)?;
        let parent = match (dir.parent(), dir.file_name()) {
            (Some(parent), Some(name)) => {
                Some((inotify.watches().add(parent, names | WatchMask::ONLYDIR)?, name.to_owned()))
            }
            _ => None,
        };
        Ok(Self { stream: inotify.into_event_stream([0; 4096])?, parent })
    }

    /// Waits for one that may mean a change. Nothing is lost when the future is dropped.
    async fn next(&mut self) -> io::Result<()> {
        loop {
            let event = self.stream.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            let foreign = |(parent, name): &(WatchDescriptor, OsString)| {
                event.wd == *parent && event.name.as_ref().is_some_and(|about| about != name)
            };
            if !self.parent.as_ref().is_some_and(foreign) {
                return Ok(());
            }
        }
    }
}

/// The files as they were read last.
#[derive(Debug, Default, Clone)]
struct Files(BTreeMap<PathBuf, File>);

#[derive(Debug, Clone)]
struct File {
    stamp: Stamp,
    pods: Vec<Arc<Object>>,
}

/// What differs when a file is another one or has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Files {
    /// The directory as it is now, and what of it cannot be read. Reading happens off the async threads.
    async fn look(&self, dir: &Path) -> io::Result<(Files, Vec<ManifestError>)> {
        let (before, dir) = (self.clone(), dir.to_owned());
        tokio::task::spawn_blocking(move || before.look_now(&dir)).await.map_err(io::Error::other)?
    }

    fn look_now(&self, dir: &Path) -> io::Result<(Files, Vec<ManifestError>)> {
        let mut files = BTreeMap::new();
        let mut broken = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if !is_manifest(&path) || !path.metadata().is_ok_and(|metadata| metadata.is_file()) {
                continue;
            }
            if files.len() == MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} manifests")));
            }
            let Ok(stamp) = Stamp::of(&path) else { continue };
            let before = self.0.get(&path);
            if let Some(file) = before.filter(|file| file.stamp == stamp) {
                files.insert(path, file.clone());
                continue;
            }
            let pods = match objects_in_file(&path) {
                Ok(objects) => objects.into_iter().map(|object| Arc::new(tight(object))).collect(),
                // it describes something else
                Err(FileError::NoPod { .. }) => Vec::new(),
                Err(error) => {
                    broken.push(ManifestError::File { path: path.clone(), reason: error.to_string() });
                    before.map(|file| file.pods.clone()).unwrap_or_default()
                }
            };
            files.insert(path, File { stamp, pods });
        }
        Ok((Files(files), broken))
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Makes the index say what the files say.
fn apply(files: &Files, reporter: &Reporter<'_>) {
    let mut chosen = BTreeMap::new();
    // The plugin's own order: a file that is named after the pod before others, and these by name.
    for rank in [Rank::WholeName, Rank::Name, Rank::Other] {
        for (path, file) in &files.0 {
            for pod in file.pods.iter().filter(|pod| Rank::of(path, pod) == rank) {
                chosen.entry((pod.namespace(), pod.name())).or_insert(pod);
            }
        }
    }
    reporter.update(|index| {
        index.begin_pods();
        let mut changed: HashSet<_> =
            chosen.into_values().flat_map(|pod| index.apply_pod(pod.clone())).collect();
        changed.extend(index.commit_pods());
        // there are none, which is known herewith
        index.begin_namespaces();
        index.commit_namespaces();
        changed.into_iter().collect()
    });
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
