//! The pods that are in the mesh, on their way into it, or on their way out.

mod kept;
mod state;
mod turn;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use capture::ambient::{NodeOptions, PodOptions};
use facts::{Object, PodRef};
use intent::{Have, Look, Observation, RedirectionMark, Rules, Ztunnel};
use netns::Netns;
use netns::find::WantedPod;
use zds::{Entry, Workload};

use super::config::AmbientConfig;
use super::desired::{self, REDIRECTION};
use crate::verification::FoundBy;
pub(crate) use state::MemberState;
pub(crate) use turn::Turn;
use turn::TurnEnded;

/// A pod that has, or had, something of ours.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) key: PodRef,
    pub(crate) service_account: String,
    /// By what it is found: see [`WantedPod`]. The runtime calls it so, too.
    cgroup: Option<String>,
    own_users: bool,
    runtime_class: String,
    /// Where it is, as soon as that is known.
    pub(crate) netns: Option<Arc<Netns>>,
    /// How the runtime said where it is, if it did.
    pub(crate) given: GivenNetns,
    /// A plugin announced it in that namespace and has not heard yet that it is in the mesh. Nobody may enrol it there before another plugin announces
    /// it, or before it runs: a runtime takes the namespace of an ADD that failed down.
    pub(crate) announced: bool,
    /// When it got its addresses, as a number that is greater for those that got theirs later.
    pub(crate) addressed: u64,
    pub(crate) options: PodOptions,
    /// Its rules are those of a pod that translates destinations itself, and whether it was last seen to.
    pub(crate) translates: bool,
    pub(crate) translates_now: bool,
    /// The node's options that its rules were programmed by; absent where that was not this process. A change of them is for new sandboxes:
    /// in this one it would cut what is open.
    pub(crate) node: Option<Arc<NodeOptions>>,
    pub(crate) state: MemberState,
    /// What it has. Only [`Have`]'s own methods change it.
    pub(crate) have: Have,
    /// The last verification found its sandbox gone.
    pub(crate) missed: bool,
    /// It was said that one family of its addresses is not captured.
    pub(crate) told_partial: bool,
    /// When its annotation was last written.
    pub(crate) annotated: Option<Instant>,
}

/// How a runtime said where a pod is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum GivenNetns {
    /// Not at all: the namespace was found by a process of the pod.
    #[default]
    No,
    /// By a path, which it removes with the sandbox.
    Path,
    /// Only the plugin's descriptor leads there, so that the end of the sandbox is not seen.
    Descriptor,
}

/// After so long the watch has told of our own patch, and what it says else is somebody's change.
const SETTLED: Duration = Duration::from_secs(10);

/// After so long an annotation that the watch does not show is written again.
const SAY_AGAIN: Duration = Duration::from_secs(3);

/// Who is told that a ztunnel's answer leaves work to do on a pod.
type Unsettled = Box<dyn Fn(&PodRef) + Send + Sync>;

/// Who is told that what is known of the pods has changed.
type Changed = Box<dyn Fn() + Send + Sync>;

/// All of them, by uid.
#[derive(Default)]
pub(crate) struct MeshMembers {
    unsettled: OnceLock<Unsettled>,
    changed: OnceLock<Changed>,
    turn_ended: OnceLock<TurnEnded>,
    members: Mutex<HashMap<String, Member>>,
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

// === impl Member ===

impl Member {
    /// What the API server says of a pod that has nothing of ours yet, and what of its annotations cannot be used.
    pub(crate) fn of(pod: &Object) -> (Self, Vec<String>) {
        let (options, warnings) = PodOptions::parse(&pod.annotations());
        let mut have = Have::new();
        have.see(Observation::Shown(shown(pod)));
        let member = Self {
            key: pod.pod_ref(),
            service_account: pod.service_account().to_owned(),
            cgroup: pod.static_hash().map(str::to_owned),
            own_users: pod.has_own_users(),
            runtime_class: pod.runtime_class().unwrap_or_default().to_owned(),
            netns: None,
            given: GivenNetns::No,
            announced: false,
            addressed: 0,
            options,
            translates: false,
            translates_now: false,
            node: None,
            state: MemberState::Pending,
            have,
            missed: false,
            told_partial: false,
            annotated: None,
        };
        (member, warnings)
    }

    /// A pod that this process did not enrol and that has something of ours all the same: rules, or the mark of one that has.
    pub(crate) fn left_by_another(pod: &Object, addresses: Vec<IpAddr>) -> Self {
        let (mut member, _) = Self::of(pod);
        member.set_ips(addresses);
        member.have.see(Observation::Inherited);
        member
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

    /// Its addresses, in the node's sets or on their way there.
    pub(crate) fn ips(&self) -> &[IpAddr] {
        &self.have.addresses
    }

    /// Takes what the watch shows of the annotation, if that is newer than what we wrote. To say once more what is true (`says`) does no harm;
    /// what is to go is not believed gone before it surely is.
    pub(crate) fn see_annotation(&mut self, pod: &Object, says: bool) {
        let time = if says { SAY_AGAIN } else { SETTLED };
        if self.annotated.is_none_or(|at| at.elapsed() > time) {
            self.have.see(Observation::Shown(shown(pod)));
        }
    }

    /// Notes its addresses.
    pub(crate) fn set_ips(&mut self, ips: Vec<IpAddr>) {
        self.have.after(&intent::Act::TakeAddresses(ips), 0);
        self.note_addressed();
    }

    /// Whoever had one of its addresses before has it no more.
    pub(crate) fn note_addressed(&mut self) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        self.addressed = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    }

    /// How its namespace is found, at these addresses.
    pub(crate) fn wanted(&self, ips: &[IpAddr], config: &AmbientConfig) -> WantedPod {
        WantedPod {
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
        self.have.is_listed().then(|| Entry { workload: self.workload(), netns })
    }

    /// Takes a namespace. That of a new sandbox has nothing of ours; one that is the same keeps the handle it has, by which ztunnels' answers are
    /// told apart.
    pub(crate) fn move_to(&mut self, netns: Netns) {
        if self.netns.as_deref() != Some(&netns) {
            self.netns = Some(Arc::new(netns));
            self.have.see(Observation::NewSandbox);
        }
    }

    /// Takes the namespace in which the pod has been all the time.
    pub(crate) fn move_to_keeping(&mut self, netns: Netns) {
        self.netns = Some(Arc::new(netns));
        self.have.after(&intent::Act::Locate, 0);
    }

    /// Whether rules of ours are there that can be looked at. Those of one whose ADD is not answered are nobody's yet.
    pub(crate) fn is_verified(&self) -> bool {
        self.have.is_captured() && self.netns.is_some() && !self.announced
    }

    /// By what its namespace is seen to be its own still.
    pub(crate) fn found_by(&self) -> FoundBy {
        match self.given {
            GivenNetns::No => FoundBy::Process,
            GivenNetns::Path => FoundBy::Path,
            GivenNetns::Descriptor => FoundBy::Descriptor,
        }
    }

    /// It is not seen to be in any more.
    pub(crate) fn doubt(&mut self) {
        if matches!(self.state, MemberState::Unconfirmed | MemberState::Enrolled) {
            self.state = MemberState::Pending;
        }
    }

    /// The state by what was seen: in the mesh is what is complete.
    fn settle(&mut self) {
        let complete = self.netns.is_some() && self.have.is_complete();
        self.state = match self.state {
            MemberState::Enrolled if !complete => MemberState::Pending,
            MemberState::Unconfirmed if complete => MemberState::Enrolled,
            MemberState::Unconfirmed if self.have.ztunnel == Ztunnel::Refused => MemberState::Pending,
            MemberState::Leaving | MemberState::Draining => match self.have.rules {
                Rules::Drain { .. } => MemberState::Draining,
                _ => MemberState::Leaving,
            },
            state => state,
        };
    }
}

/// What a pod's annotation says of us. Another value says of itself that the pod is not in.
fn shown(pod: &Object) -> Option<RedirectionMark> {
    pod.annotation(REDIRECTION).and_then(desired::mark_of)
}

// === impl MeshMembers ===

impl MeshMembers {
    /// A copy of what is known of a pod.
    pub(crate) fn get(&self, uid: &str) -> Option<Member> {
        self.members().get(uid).cloned()
    }

    /// `told` hears of pods on which there is work to do after a ztunnel's answer. It must not wait.
    pub(crate) fn on_unsettled(&self, told: impl Fn(&PodRef) + Send + Sync + 'static) {
        let _ = self.unsettled.set(Box::new(told));
    }

    /// `told` hears that something has changed. It must not wait.
    pub(crate) fn on_change(&self, told: impl Fn() + Send + Sync + 'static) {
        let _ = self.changed.set(Box::new(told));
    }

    /// `told` hears of each pod on which nobody works any more, by its uid. It must not wait.
    pub(crate) fn on_turn_end(&self, told: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.turn_ended.set(Arc::new(told));
    }

    /// Notes a pod that is not known yet.
    pub(crate) fn insert(&self, mut member: Member) {
        member.settle();
        self.members().insert(member.key.uid.clone(), member);
        self.tell_change();
    }

    /// Changes what is known of a pod; gives how it is then, and nothing if the pod is not known. Under the lock: an answer of a ztunnel comes
    /// before or after.
    pub(crate) fn change(&self, uid: &str, change: impl FnOnce(&mut Member)) -> Option<Member> {
        let mut members = self.members();
        let member = members.get_mut(uid)?;
        change(member);
        member.settle();
        let member = member.clone();
        drop(members);
        self.tell_change();
        Some(member)
    }

    /// Notes that a comparison has found the pod's rules as planned, unless the pod has others by now; gives the pod as it was, if that is news.
    pub(crate) fn see_as_planned(&self, uid: &str) -> Option<Member> {
        let before = {
            let mut members = self.members();
            let member = members.get_mut(uid).filter(|member| member.is_verified())?;
            if member.have.look() == Some(Look::AsPlanned) && !member.missed {
                return None;
            }
            let before = member.clone();
            member.have.see(Observation::Rules(Look::AsPlanned));
            member.settle();
            before
        };
        self.tell_change();
        Some(before)
    }

    fn tell_change(&self) {
        if let Some(told) = self.changed.get() {
            told();
        }
    }

    /// How far a pod is.
    pub(crate) fn state(&self, uid: &str) -> Option<MemberState> {
        self.members().get(uid).map(|member| member.state)
    }

    /// Forgets a pod.
    pub(crate) fn remove(&self, uid: &str) {
        self.members().remove(uid);
        self.tell_change();
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Member> {
        self.members().values().cloned().collect()
    }

    /// How many are in a state.
    pub(crate) fn count(&self, state: MemberState) -> usize {
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
        Turn::new(lock.lock_owned().await, uid, self.turn_ended.get().cloned())
    }

    /// Whether somebody works on the pod.
    pub(crate) fn is_taken(&self, uid: &str) -> bool {
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.get(uid).is_some_and(|turn| turn.try_lock().is_err())
    }

    fn members(&self) -> MutexGuard<'_, HashMap<String, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl zds::Snapshot for MeshMembers {
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
            member.have.see(if result.is_ok() { Observation::Taken } else { Observation::Refused });
            let before = member.state;
            member.settle();
            // One that was not known to be in may lack its annotation: the agent before ended in between.
            let known = before == MemberState::Enrolled && member.state == MemberState::Enrolled;
            (!known).then(|| member.key.clone())
        };
        self.tell_change();
        if let (Some(key), Some(told)) = (unsettled, self.unsettled.get()) {
            told(&key);
        }
    }
}

#[cfg(test)]
mod tests;
