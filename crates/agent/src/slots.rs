//! A slot for each pod: what is done in a pod's network namespace has a thread and a time of its own.
//!
//! Whoever may change rules in the namespace can keep the kernel busy there for minutes, and a thread that waits for that cannot be called
//! back. So it is left to itself when its time is over: its pod is overdue, nothing else is begun in that namespace until the thread ends, and
//! no other pod waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use facts::PodRef;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore, oneshot};

/// How long one act in a pod's namespace may take. With nf_tables it takes milliseconds; iptables programs take longer on a busy node.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// After so long an act does not count any more among those that run at once: it waits in the kernel, or for a program.
const SLOW: Duration = Duration::from_millis(250);
/// Acts of a kind that run at once. More would only take the processor from each other.
const AT_ONCE: usize = 4;
/// Threads that hang, at most: of the pods of one Kubernetes namespace, so that none of them keeps those of others from being worked on, and
/// of all. A node has some hundred pods.
const MOST_OF_A_NAMESPACE: usize = 64;
const MOST: usize = 512;

/// What is done in a pod's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Its rules are compared with the plan.
    Verify,
    /// The same after they were put right.
    Confirm,
    /// Rules of ours come, or are put right.
    Program,
    /// Rules of ours make way for those of others: in one transaction, and beside whatever else is under way.
    MakeWay,
    /// Rules of ours go.
    Clear,
    /// What is open is looked at, or ended.
    Connections,
    /// It is looked whose namespace it is.
    Identify,
}

/// Why an act has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnfinishedAct {
    /// It has begun and has not ended in time.
    #[error(
        "{task} has not ended within {} s: the kernel is busy in that namespace, as with a long change of rules by a process of the pod, or a program \
         hangs; it is tried again when that is over",
        LIMIT.as_secs()
    )]
    Overdue {
        /// What was begun.
        task: Task,
    },
    /// Too many pods of the namespace, or of all, are overdue.
    #[error(
        "{0} other pods are overdue in their network namespaces; it is tried again when some of them are not"
    )]
    Crowded(usize),
    /// The system gave no thread.
    #[error("start a thread: {0}; the node is out of processes or memory")]
    Thread(std::io::Error),
    /// It panicked.
    #[error("{0} has panicked; this is a defect, please report it")]
    Panicked(Task),
}

/// Hears of pods that become overdue, and of those that are not any more. It must not wait.
type Told = Box<dyn Fn(&PodRef, bool) + Send + Sync>;

/// All of them.
pub(crate) struct Slots {
    /// By [`slot_of`].
    taken: Mutex<HashMap<String, Slot>>,
    changed: Notify,
    looking: Semaphore,
    confirming: Semaphore,
    working: Semaphore,
    told: OnceLock<Told>,
}

#[derive(Debug)]
struct Slot {
    key: PodRef,
    task: Task,
    /// When its thread began; absent while it waits for others to end.
    began: Option<Instant>,
}

/// A slot that is taken. It goes with the thread.
struct Guard {
    slots: Arc<Slots>,
    id: String,
}

// === impl Task ===

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Verify | Self::Confirm => "the verification of its rules",
            Self::Program | Self::MakeWay => "the programming of its rules",
            Self::Clear => "the removal of its rules",
            Self::Connections => "the look at its connections",
            Self::Identify => "the look at its addresses",
        })
    }
}

// === impl Slot ===

impl Slot {
    fn took(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    fn is_overdue(&self) -> bool {
        self.took() >= LIMIT
    }
}

// === impl Slots ===

impl Default for Slots {
    fn default() -> Self {
        Self {
            taken: Mutex::default(),
            changed: Notify::new(),
            looking: Semaphore::new(AT_ONCE),
            confirming: Semaphore::new(1),
            working: Semaphore::new(AT_ONCE),
            told: OnceLock::new(),
        }
    }
}

impl Slots {
    /// `told` hears of each pod that becomes overdue (`true`) or is so no longer.
    pub(crate) fn on_overdue(&self, told: impl Fn(&PodRef, bool) + Send + Sync + 'static) {
        let _ = self.told.set(Box::new(told));
    }

    /// Does an act on a thread for it, after what is under way in the same namespace.
    ///
    /// # Errors
    /// It, or what was begun there before, has not ended in time.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        key: &PodRef,
        task: Task,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, UnfinishedAct> {
        let guard = self.take(key, task).await?;
        let class = match task {
            Task::Verify => &self.looking,
            // Where much has to be put right, that comes first.
            Task::Confirm => &self.confirming,
            Task::Program | Task::MakeWay | Task::Clear | Task::Connections | Task::Identify => &self.working,
        };
        // Never closed.
        let permit = class.acquire().await.ok();
        let began = guard.begin();
        let (sender, mut result) = oneshot::channel();
        let thread = std::thread::Builder::new().name("pod".to_owned()).spawn(move || {
            let done = work();
            drop(guard);
            // Nobody listens any more when it is late.
            let _ = sender.send(done);
        });
        thread.map_err(UnfinishedAct::Thread)?;
        let quick = tokio::time::timeout(SLOW, &mut result).await;
        drop(permit);
        if let Ok(done) = quick {
            return done.map_err(|_| UnfinishedAct::Panicked(task));
        }
        self.changed.notify_waiters();
        let left = LIMIT.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, result).await {
            Ok(done) => done.map_err(|_| UnfinishedAct::Panicked(task)),
            Err(_) => {
                self.tell(key, true);
                Err(UnfinishedAct::Overdue { task })
            }
        }
    }

    /// Pods in whose namespace an act has not ended in time, and which act.
    pub(crate) fn overdue(&self) -> Vec<(PodRef, Task)> {
        let taken = self.taken();
        let overdue = taken.values().filter(|slot| slot.is_overdue());
        let mut overdue: Vec<_> = overdue.map(|slot| (slot.key.clone(), slot.task)).collect();
        overdue.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        overdue
    }

    /// Whether an act in the pod's namespace has not ended in time.
    pub(crate) fn is_overdue(&self, uid: &str) -> bool {
        self.taken().get(uid).is_some_and(Slot::is_overdue)
    }

    /// Whether rules are being changed in the pod's namespace.
    pub(crate) fn is_changing(&self, uid: &str) -> bool {
        self.taken().get(uid).is_some_and(|slot| matches!(slot.task, Task::Program | Task::Clear))
    }

    /// How many acts take long.
    pub(crate) fn slow(&self) -> usize {
        self.taken().values().filter(|slot| slot.took() >= SLOW).count()
    }

    /// Ends when there is more or less under way than there was at this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Waits until nothing is under way but what is overdue, at most so long.
    pub(crate) async fn settle(&self, time: Duration) {
        let settled = async {
            while self.taken().values().any(|slot| !slot.is_overdue()) {
                let _ = tokio::time::timeout(SLOW, self.changed.notified()).await;
            }
        };
        let _ = tokio::time::timeout(time, settled).await;
    }

    async fn take(self: &Arc<Self>, key: &PodRef, task: Task) -> Result<Guard, UnfinishedAct> {
        let id = slot_of(key, task);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let left = {
                let mut taken = self.taken();
                match taken.get(&id) {
                    None => {
                        crowded(&taken, key)?;
                        taken.insert(id.clone(), Slot { key: key.clone(), task, began: None });
                        return Ok(Guard { slots: self.clone(), id });
                    }
                    Some(slot) if slot.is_overdue() => {
                        return Err(UnfinishedAct::Overdue { task: slot.task });
                    }
                    Some(slot) => LIMIT.saturating_sub(slot.took()),
                }
            };
            let _ = tokio::time::timeout(left, changed).await;
        }
    }

    fn tell(&self, key: &PodRef, overdue: bool) {
        if let Some(told) = self.told.get() {
            told(key, overdue);
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        locked(&self.taken)
    }
}

/// Which acts exclude each other: all in a pod's namespace, by its uid, but those that make way.
fn slot_of(key: &PodRef, task: Task) -> String {
    match task {
        Task::MakeWay => format!("{}/way", key.uid),
        _ => key.uid.clone(),
    }
}

/// Whether there is no room for one more that may hang.
fn crowded(taken: &HashMap<String, Slot>, key: &PodRef) -> Result<(), UnfinishedAct> {
    let overdue = || taken.values().filter(|slot| slot.is_overdue());
    let (all, theirs) =
        (overdue().count(), overdue().filter(|slot| slot.key.namespace == key.namespace).count());
    if all >= MOST || theirs >= MOST_OF_A_NAMESPACE { Err(UnfinishedAct::Crowded(all)) } else { Ok(()) }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Guard ===

impl Guard {
    fn begin(&self) -> Instant {
        let now = Instant::now();
        if let Some(slot) = self.slots.taken().get_mut(&self.id) {
            slot.began = Some(now);
        }
        now
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let slot = self.slots.taken().remove(&self.id);
        if let Some(slot) = slot.filter(Slot::is_overdue) {
            self.slots.tell(&slot.key, false);
        }
        self.slots.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
