//! The last known facts on disk, a file for each pod of the node, from which the plugin reads when neither the agent nor the API server
//! answers.
//!
//! Files are replaced by renaming and not synced: what they say can be had again, and a file that a crash of the machine has torn does
//! not parse, which the reader takes for none. Nothing is written or removed before the index is complete for the first time, and what
//! cannot be written is tried again: the files are the newest that could be known and kept.

mod files;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use facts::PodRef;
use fault::Backoff;
use rundir::FACTS_DIR;

use crate::watch::Cluster;
use files::StoreFiles;
pub use files::Unusable;

/// Pauses while nothing can be written.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// The facts cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file cannot be written or removed.
    #[error("keep the facts of {pods} pods in {}: {cause}; free space, or make the directory writable for the agent", .dir.display())]
    Write {
        /// How many pods wait for it.
        pods: usize,
        /// `<run dir>/facts`
        dir: PathBuf,
        /// The operating system's words.
        cause: io::Error,
    },
    /// The thread that writes cannot be started.
    #[error("start the thread that writes facts: {0}; raise the limit of processes")]
    Thread(io::Error),
}

/// Lets `cluster` know what an earlier process kept in `<run_dir>/facts`, until a list says otherwise. Gives how many pods these are, and why
/// some files cannot be used.
pub fn remember(run_dir: &Path, cluster: &Cluster) -> (usize, Vec<Unusable>) {
    let (all, unusable) = files::read_all(&run_dir.join(FACTS_DIR));
    let count = all.len();
    all.into_iter().for_each(|facts| cluster.remember(facts));
    (count, unusable)
}

/// What happens to the files.
#[derive(Debug)]
pub enum StoreEvent {
    /// Told once, until it works again.
    Failed(StoreError),
    /// Everything is written again.
    Restored,
}

/// Writes from a thread of its own until dropped, which waits for what is still to be written.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    work: Mutex<Work>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    /// Namespace and name.
    changed: Names,
    /// The index has become complete, and files of pods that it lacks are to be removed.
    sweep: bool,
    synced: bool,
    /// What was to be done is being done.
    writing: bool,
    stopped: bool,
}

/// Namespaces and names.
type Names = BTreeSet<(String, String)>;

// === impl Store ===

impl Store {
    /// Keeps the facts of `cluster` in `<run_dir>/facts`, which is made when it is needed.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        run_dir: &Path,
        cluster: Cluster,
        observer: impl Fn(StoreEvent) + Send + 'static,
    ) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared { work: Mutex::default(), wake: Condvar::new() });
        let files = StoreFiles::new(run_dir.join(FACTS_DIR));
        let writer = Writer { shared: shared.clone(), files, cluster, observer, failures: 0 };
        let thread = std::thread::Builder::new().name("facts-store".into());
        let writer = thread.spawn(move || writer.run()).map_err(StoreError::Thread)?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// These pods changed, or are gone: [`crate::Event::Changed`]. Does not wait.
    pub fn changed(&self, pods: &[PodRef]) {
        let mut work = self.shared.work();
        // before that, all pods are still to be written
        if work.synced {
            work.changed.extend(pods.iter().map(|pod| (pod.namespace.clone(), pod.name.clone())));
            self.shared.wake.notify_all();
        }
    }

    /// The index is complete: [`crate::Event::Synced`]. Does not wait.
    pub fn synced(&self) {
        let mut work = self.shared.work();
        (work.synced, work.sweep) = (true, true);
        self.shared.wake.notify_all();
    }

    /// Waits until everything is written that was told before, at most so long; whether it is.
    pub fn flush(&self, limit: Duration) -> bool {
        let work = self.shared.work();
        let waited = self.shared.wake.wait_timeout_while(work, limit, |work| work.writing || work.is_there());
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.work().stopped = true;
        self.shared.wake.notify_all();
        if let Some(writer) = self.writer.take() {
            // it panics only if the observer does, and there is nobody left to tell
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    fn is_there(&self) -> bool {
        self.synced && (self.sweep || !self.changed.is_empty())
    }
}

/// What the thread does.
struct Writer<F> {
    shared: Arc<Shared>,
    files: StoreFiles,
    cluster: Cluster,
    observer: F,
    /// In a row.
    failures: u32,
}

impl<F: Fn(StoreEvent)> Writer<F> {
    fn run(mut self) {
        let shared = self.shared.clone();
        let mut work = shared.work();
        loop {
            let idle = |work: &mut Work| !work.stopped && !work.is_there();
            work = shared.wake.wait_while(work, idle).unwrap_or_else(PoisonError::into_inner);
            if !work.is_there() {
                return;
            }
            let (names, sweep) = (std::mem::take(&mut work.changed), std::mem::take(&mut work.sweep));
            work.writing = true;
            drop(work);
            let left = self.files.update(&self.cluster, names, sweep);
            let failed = !left.names.is_empty() || left.sweep;
            self.tell(left.names.len(), left.cause);
            work = shared.work();
            work.changed.extend(left.names);
            work.sweep |= left.sweep;
            work.writing = false;
            shared.wake.notify_all();
            if failed && work.stopped {
                return;
            }
            if failed {
                let pause = RETRY.pause(self.failures);
                let waited = shared.wake.wait_timeout_while(work, pause, |work| !work.stopped);
                work = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Tells of the first failure in a row, and of its end.
    fn tell(&mut self, pods: usize, cause: Option<io::Error>) {
        let Some(cause) = cause else {
            if std::mem::take(&mut self.failures) > 0 {
                (self.observer)(StoreEvent::Restored);
            }
            return;
        };
        self.failures = self.failures.saturating_add(1);
        if self.failures == 1 {
            let dir = self.files.dir().to_owned();
            (self.observer)(StoreEvent::Failed(StoreError::Write { pods, dir, cause }));
        }
    }
}
