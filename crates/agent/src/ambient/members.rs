//! The pods that are in the mesh, on their way into it, or on their way out.

mod kept;
mod state;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use capture::ambient::{NodeOptions, PodOptions};
use facts::{Object, PodRef};
use netns::Netns;
use netns::find::Wanted;
use tokio::sync::OwnedMutexGuard;
use zds::{Entry, Workload};

use super::config::AmbientConfig;
use super::desired::REDIRECTION;
pub(crate) use state::{Acked, Look, State};

/// A pod that has, or had, something of ours.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) key: PodRef,
    pub(crate) service_account: String,
    /// By what it is found: see [`Wanted`]. The runtime calls it so, too.
    cgroup: Option<String>,
    own_users: bool,
    runtime_class: String,
    /// Where it is, as soon as that is known.
    pub(crate) netns: Option<Arc<Netns>>,
    /// The runtime said where, and removes the file of its path with the sandbox.
    pub(crate) given: bool,
    /// The runtime said where, and only the plugin's descriptor leads there, so that the end of the sandbox is not seen.
    pub(crate) held: bool,
    /// A plugin announced it in that namespace and has not heard yet that it is in the mesh. Nobody may enrol it there before another plugin announces
    /// it, or before it runs: a runtime takes the namespace of an ADD that failed down.
    pub(crate) announced: bool,
    /// Addresses in the host's sets.
    pub(crate) ips: Vec<IpAddr>,
    /// When it got them, as a number that is greater for those that got theirs later.
    pub(crate) addressed: u64,
    pub(crate) options: PodOptions,
    /// The node's options that its rules were programmed by; absent where that was not this process. A change of them is for new sandboxes:
    /// in this one it would cut what is open.
    pub(crate) node: Option<Arc<NodeOptions>>,
    pub(crate) state: State,
    /// Our rules are in its namespace, or may be.
    pub(crate) ruled: bool,
    /// Since when, in seconds since 1970, there are only those rules left in its namespace that let open connections go on.
    pub(crate) draining: Option<u64>,
    /// Everything of ours was removed from its namespace, and nothing came there since.
    pub(crate) cleared: bool,
    /// What was seen of them.
    pub(crate) look: Look,
    /// Its namespace was told by us not to pick up connections that it has not seen begin.
    pub(crate) strict: bool,
    /// A ztunnel has taken it.
    pub(crate) acked: Acked,
    /// Its addresses are in the host's sets.
    pub(crate) probed: bool,
    /// It belongs into the snapshot of a ztunnel that connects.
    pub(crate) listed: bool,
    /// The last verification found its sandbox gone.
    pub(crate) missed: bool,
    /// It was said that one family of its addresses is not captured.
    pub(crate) told_partial: bool,
    /// The annotation that the API server has by what we know.
    pub(crate) annotation: Option<String>,
    /// When that was last written.
    pub(crate) annotated: Option<Instant>,
}

/// After so long the watch has told of our own patch, and what it says else is somebody's change.
const SETTLED: Duration = Duration::from_secs(10);

/// After so long an annotation that the watch does not show is written again.
const SAY_AGAIN: Duration = Duration::from_secs(3);

/// Who is told that a ztunnel's answer leaves work to do on a pod.
type Unsettled = Box<dyn Fn(&PodRef) + Send + Sync>;

/// All of them, by uid.
#[derive(Default)]
pub(crate) struct Members {
    unsettled: OnceLock<Unsettled>,
    members: Mutex<HashMap<String, Member>>,
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The right to work on a pod: the plugin's event and the queue may want to at once (AA-42).
pub(crate) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

// === impl Member ===

impl Member {
    /// What the API server says of a pod that has nothing of ours yet, and what of its annotations cannot be used.
    pub(crate) fn of(pod: &Object) -> (Self, Vec<String>) {
        let (options, warnings) = PodOptions::parse(&pod.annotations());
        let member = Self {
            key: pod.pod_ref(),
            service_account: pod.service_account().to_owned(),
            cgroup: pod.static_hash().map(str::to_owned),
            own_users: pod.has_own_users(),
            runtime_class: pod.runtime_class().unwrap_or_default().to_owned(),
            netns: None,
            given: false,
            held: false,
            announced: false,
            ips: Vec::new(),
            addressed: 0,
            options,
            node: None,
            state: State::Pending,
            ruled: false,
            draining: None,
            cleared: false,
            look: Look::Unknown,
            strict: false,
            acked: Acked::default(),
            probed: false,
            listed: false,
            missed: false,
            told_partial: false,
            annotation: pod.annotation(REDIRECTION).map(str::to_owned),
            annotated: None,
        };
        (member, warnings)
    }

    /// Notes what the runtime calls it: of a pod whose manifest has no uid that is known by nothing else.
    pub(crate) fn call(&mut self, uid: Option<String>) {
        if let Some(uid) = uid.filter(|uid| !uid.is_empty() && *uid != self.key.uid) {
            self.cgroup = Some(uid);
        }
    }

    /// What the runtime calls it: its uid, or the hash of a static pod's manifest.
    pub(crate) fn called(&self) -> &str {
        self.cgroup.as_deref().unwrap_or(&self.key.uid)
    }

    /// Whether what the watch shows of the annotation is newer than what we wrote.
    pub(crate) fn is_settled(&self) -> bool {
        self.annotated.is_none_or(|at| at.elapsed() > SETTLED)
    }

    /// Whether what we wrote is so long ago that a watch that does not show it is likely to be right.
    pub(crate) fn may_say_again(&self) -> bool {
        self.annotated.is_none_or(|at| at.elapsed() > SAY_AGAIN)
    }

    /// Notes its addresses; whoever had one of them before has it no more.
    pub(crate) fn set_ips(&mut self, ips: Vec<IpAddr>) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        (self.ips, self.addressed) = (ips, LAST.fetch_add(1, Ordering::Relaxed) + 1);
    }

    /// How its namespace is found, at these addresses.
    pub(crate) fn wanted(&self, ips: &[IpAddr], config: &AmbientConfig) -> Wanted {
        Wanted {
            uid: self.key.uid.clone(),
            cgroup: self.cgroup.clone(),
            ips: ips.to_vec(),
            own_users: self.own_users,
            kernel_network: config.uses_kernel_network(&self.runtime_class),
        }
    }

    pub(crate) fn workload(&self) -> Workload {
        Workload {
            uid: self.key.uid.clone(),
            name: self.key.name.clone(),
            namespace: self.key.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// What ztunnels are to know of it.
    fn entry(&self) -> Option<Entry> {
        let netns = self.netns.clone().map(|netns| netns as zds::NetnsFd);
        self.listed.then(|| Entry { workload: self.workload(), netns })
    }

    /// Takes another namespace: that of a new sandbox has nothing of ours. One that is the same keeps the handle it has (AA-81).
    pub(crate) fn move_to(&mut self, netns: Netns) {
        if self.netns.as_deref() != Some(&netns) {
            self.netns = Some(Arc::new(netns));
            (self.ruled, self.draining, self.look) = (false, None, Look::Unknown);
            self.acked.set(false);
        }
    }

    /// Whether everything was seen: the rules in the kernel, the addresses in the node's sets, and a ztunnel's answer.
    fn is_confirmed(&self) -> bool {
        let ruled = self.ruled && self.look == Look::AsPlanned;
        self.netns.is_some() && ruled && self.probed && self.acked.get()
    }

    /// The state that is noted: in the mesh is what was seen to be.
    fn settled(&self) -> State {
        match self.state {
            State::Enrolled if !self.is_confirmed() => State::Pending,
            State::Unconfirmed if self.is_confirmed() => State::Enrolled,
            State::Unconfirmed if self.acked.is_refused() => State::Pending,
            state => state,
        }
    }

    /// Takes the namespace in which the pod has been all the time.
    pub(crate) fn move_to_keeping(&mut self, netns: Netns) {
        self.netns = Some(Arc::new(netns));
    }
}

// === impl Members ===

impl Members {
    /// A copy of what is known of a pod.
    pub(crate) fn get(&self, uid: &str) -> Option<Member> {
        self.members().get(uid).cloned()
    }

    /// `told` hears of pods on which there is work to do after a ztunnel's answer. It must not wait.
    pub(crate) fn on_unsettled(&self, told: impl Fn(&PodRef) + Send + Sync + 'static) {
        let _ = self.unsettled.set(Box::new(told));
    }

    /// Notes what is known of a pod.
    pub(crate) fn put(&self, member: &Member) {
        let mut members = self.members();
        // Under the lock: an answer of a ztunnel comes before or after.
        let state = member.settled();
        let look = if member.ruled { member.look } else { Look::Unknown };
        members.insert(member.key.uid.clone(), Member { state, look, ..member.clone() });
    }

    /// How far a pod is.
    pub(crate) fn state(&self, uid: &str) -> Option<State> {
        self.members().get(uid).map(|member| member.state)
    }

    /// Forgets a pod.
    pub(crate) fn remove(&self, uid: &str) {
        self.members().remove(uid);
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Member> {
        self.members().values().cloned().collect()
    }

    /// How many are in a state.
    pub(crate) fn count(&self, state: State) -> usize {
        self.members().values().filter(|member| member.state == state).count()
    }

    /// Waits until nobody else works on the pod.
    pub(crate) async fn turn(&self, uid: &str) -> Turn {
        let lock = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // One that nobody waits for and nobody holds is only in this map.
            turns.retain(|_, lock| Arc::strong_count(lock) > 1);
            turns.entry(uid.to_owned()).or_default().clone()
        };
        Turn { _guard: lock.lock_owned().await }
    }

    fn members(&self) -> MutexGuard<'_, HashMap<String, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl zds::Snapshot for Members {
    fn entries(&self) -> Vec<Entry> {
        self.members().values().filter_map(Member::entry).collect()
    }

    fn entry(&self, uid: &str) -> Option<Entry> {
        self.members().get(uid).and_then(Member::entry)
    }

    fn answered(&self, entry: &Entry, result: Result<(), &str>) {
        // A Keep says nothing about the pod.
        let Some(sent) = &entry.netns else { return };
        let unsettled = {
            let mut members = self.members();
            let Some(member) = members.get_mut(&entry.workload.uid) else { return };
            // The answer may be about a sandbox that is not the pod's any more.
            let current = member.netns.as_ref().map(|netns| Arc::as_ptr(netns).cast::<()>());
            if current != Some(Arc::as_ptr(sent).cast::<()>()) {
                return;
            }
            match result {
                Ok(()) => member.acked.set(true),
                Err(_) => member.acked.refuse(),
            }
            let before = member.state;
            member.state = member.settled();
            // One that was not known to be in may lack its annotation: the agent before ended in between.
            let known = before == State::Enrolled && member.state == State::Enrolled;
            (!known).then(|| member.key.clone())
        };
        if let (Some(key), Some(told)) = (unsettled, self.unsettled.get()) {
            told(&key);
        }
    }
}

#[cfg(test)]
mod tests;
