//! A directory of manifests, watched with inotify.
//!
//! Any event leads to a look at the whole directory, and files whose identity, size or time of change differ are read again. So nothing
//! depends on the order of events, on whether a file is written in place, renamed or linked to, nor on the kernel's queue of events.
//! Events tell one thing more: which files are being written, and so are not whole.

mod files;

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use podsource::is_manifest;

use super::fetch::{FetchError, Question, Questions};
use super::{Reporter, Standing, Wanted, WatchError, WatchName};
pub(super) use files::{Files, Reader};

/// Writers make several changes in a row; they are read together, once there was none for so long, or after a while of changes.
const QUIET_PERIOD: Duration = Duration::from_millis(30);
const MAX_BATCH_WAIT: Duration = Duration::from_millis(500);

/// A look without an event, for what inotify does not tell: files behind links that change in place, network file systems.
const LOOK: Duration = Duration::from_secs(60);

/// A file that was changed counts as unfinished until its writer closes it, or has not changed it for so long.
const UNFINISHED: Duration = Duration::from_secs(10);

/// Most unfinished files that are remembered.
const MAX_UNFINISHED: usize = 1024;

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
    /// A file cannot be read. The objects that it described before stay.
    #[error("{reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// The whole message, which names the file.
        reason: String,
    },
}

impl ManifestError {
    fn path(&self) -> &Path {
        match self {
            Self::Dir { dir: path, .. } | Self::File { path, .. } => path,
        }
    }
}

/// Watches for ever. Whoever asks for a pod is answered after a look at the directory as it is then.
pub(super) async fn watch(
    dir: &Path,
    reporter: &Reporter<'_>,
    mut questions: Option<Questions>,
    wanted: &Wanted,
) -> Infallible {
    let mut standing = Standing::new(WatchName::MANIFESTS, reporter, None);
    let mut files = Files::new(wanted);
    loop {
        let error = match follow(dir, &mut files, &mut standing, &mut questions, wanted).await {
            Ok(()) => continue,
            Err(error) => error.to_string(),
        };
        standing.failed(ManifestError::Dir { dir: dir.into(), reason: error }).await;
    }
}

/// Reads the directory and follows its changes until it is another one under the same name, or an error.
async fn follow(
    dir: &Path,
    files: &mut Files,
    standing: &mut Standing<'_>,
    questions: &mut Option<Questions>,
    wanted: &Wanted,
) -> io::Result<()> {
    let identity = identity(dir)?;
    let mut events = Events::of(dir)?;
    let mut asked: Vec<Question> = Vec::new();
    loop {
        let (read, broken) = files.look(dir).await?;
        events.catch_up()?;
        *files = read.without_unfinished(files, |path| events.is_unfinished(path));
        standing.reporter.update(|index| files.apply(index));
        wanted.wishes().iter().for_each(|wish| wish.take_manifests(files));
        standing.reporter.listed(WatchName::MANIFESTS);
        standing.works();
        for error in broken.into_iter().filter(|error| !events.is_unfinished(error.path())) {
            standing.reporter.unreadable(WatchName::MANIFESTS, WatchError::Manifests(error));
        }
        asked.drain(..).for_each(|question| answer(question, standing.reporter));
        tokio::select! {
            event = tokio::time::timeout(events.longest_wait(), events.next()) => {
                event.unwrap_or(Ok(()))?;
                let calm = async { while tokio::time::timeout(QUIET_PERIOD, events.next()).await.is_ok() {} };
                tokio::select! {
                    // over or not, what there is now is read
                    _ = tokio::time::timeout(MAX_BATCH_WAIT, calm) => {}
                    question = next(questions) => asked.push(question),
                }
            }
            question = next(questions) => asked.push(question),
        }
        if let Some(questions) = questions {
            asked.extend(std::iter::from_fn(|| questions.try_recv().ok()));
        }
        if self::identity(dir)? != identity {
            return Ok(());
        }
    }
}

/// Waits for a question, for ever if nobody is left to ask one.
async fn next(questions: &mut Option<Questions>) -> Question {
    match questions {
        Some(questions) => match questions.recv().await {
            Some(question) => question,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn answer(Question { key, answer }: Question, reporter: &Reporter<'_>) {
    let known = reporter.cluster.index().pod(&key.namespace, &key.name).is_some();
    // Who no longer listens needs no answer.
    let _ = answer.send(if known { Ok(()) } else { Err(FetchError::NoManifest) });
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
    /// Files that somebody has changed and not closed, and when.
    unfinished: HashMap<OsString, Instant>,
    /// Something has happened since the last look began.
    behind: bool,
}

impl Events {
    fn of(dir: &Path) -> io::Result<Self> {
        let names = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE;
        let itself = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        let writes = WatchMask::MODIFY | WatchMask::CLOSE_WRITE;
        let inotify = Inotify::init()?;
        inotify.watches().add(dir, names | itself | writes | WatchMask::ATTRIB)?;
        let dir = std::path::absolute(dir)?;
        let parent = match (dir.parent(), dir.file_name()) {
            (Some(parent), Some(name)) => {
                Some((inotify.watches().add(parent, names | WatchMask::ONLYDIR)?, name.to_owned()))
            }
            _ => None,
        };
        let stream = inotify.into_event_stream([0; 4096])?;
        Ok(Self { stream, parent, unfinished: HashMap::new(), behind: false })
    }

    /// Waits for one that may mean a change. Nothing is lost when the future is dropped.
    async fn next(&mut self) -> io::Result<()> {
        loop {
            let event = self.stream.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            let foreign = |(parent, name): &(WatchDescriptor, OsString)| {
                event.wd == *parent && event.name.as_ref().is_some_and(|about| about != name)
            };
            if self.parent.as_ref().is_some_and(foreign) {
                continue;
            }
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                self.unfinished.clear();
            }
            match event.name {
                Some(name) if event.mask.contains(EventMask::MODIFY) => self.note_unfinished(name),
                Some(name) => {
                    if !event.mask.contains(EventMask::ATTRIB) {
                        self.unfinished.remove(&name);
                    }
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
    }

    /// Takes in what has happened during a look.
    fn catch_up(&mut self) -> io::Result<()> {
        // Bounded: writers may be faster than this.
        for _ in 0..MAX_UNFINISHED {
            match self.next().now_or_never() {
                Some(event) => event?,
                None => break,
            }
            self.behind = true;
        }
        Ok(())
    }

    fn note_unfinished(&mut self, name: OsString) {
        if is_manifest(Path::new(&name)) {
            if self.unfinished.len() >= MAX_UNFINISHED {
                self.unfinished.clear();
            }
            self.unfinished.insert(name, Instant::now());
        }
    }

    fn is_unfinished(&self, path: &Path) -> bool {
        let since = path.file_name().and_then(|name| self.unfinished.get(name));
        since.is_some_and(|since| since.elapsed() < UNFINISHED)
    }

    /// How long nothing may happen before the directory is looked at again.
    fn longest_wait(&mut self) -> Duration {
        self.unfinished.retain(|_, since| since.elapsed() < UNFINISHED);
        if std::mem::take(&mut self.behind) {
            return Duration::ZERO;
        }
        if self.unfinished.is_empty() { LOOK } else { UNFINISHED }
    }
}
