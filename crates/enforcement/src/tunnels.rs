//! Pods of this node in ambient mode, and who judges what comes through their tunnels.
//!
//! Rules inside a pod come first. When they are there the node lets the tunnel pass, and only then the pod's connections are led to ztunnel. On the way
//! out the node closes the tunnel first. So at no moment the tunnel is open while nobody judges what is in it.

use std::collections::BTreeMap;

use cluster::news::ObjectKey;
use facts::PodRef;
use policy::index::TunnelJudge;
use tokio::sync::oneshot;

use super::state::{FollowStage, PolicyState};
use super::world::key_of;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    pods: BTreeMap<ObjectKey, PodTunnel>,
    /// Whether it is known which pods were in ambient mode before this agent.
    are_known: bool,
}

#[derive(Debug)]
struct PodTunnel {
    stage: TunnelStage,
    /// It was in ambient mode before this agent, and where it is has not been told yet.
    is_earlier: bool,
    /// Who waits until it is judged.
    waiting: Vec<oneshot::Sender<()>>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TunnelStage {
    /// A plugin has announced the pod. Until its policies are in force it is guarded, and the guard has the place of the rules.
    Announced,
    /// Rules are on their way into the pod.
    Coming,
    /// They are there.
    Inside,
}

/// How a pod comes into ambient mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelEntry {
    /// A plugin announces it, and asks for its policies next.
    pub is_announced: bool,
    /// Its network namespace is another one than was known.
    pub is_moved: bool,
}

// === impl Tunnels ===

impl Tunnels {
    /// Whether it is known which pods were in ambient mode before this agent.
    pub(super) fn are_known(&self) -> bool {
        self.are_known
    }

    /// These pods were in ambient mode before this agent, whose predecessor has loaded their rules; they are looked at as any others.
    pub(super) fn know(&mut self, pods: impl IntoIterator<Item = ObjectKey>) {
        self.are_known = true;
        for key in pods {
            let stage = TunnelStage::Inside;
            self.pods.entry(key).or_insert(PodTunnel { stage, is_earlier: true, waiting: Vec::new() });
        }
    }

    /// A pod comes into ambient mode, or is in it still.
    pub(super) fn enter(&mut self, key: ObjectKey, entry: TunnelEntry) {
        let stage = if entry.is_announced { TunnelStage::Announced } else { TunnelStage::Coming };
        let known =
            self.pods.entry(key).or_insert(PodTunnel { stage, is_earlier: false, waiting: Vec::new() });
        let is_earlier = std::mem::take(&mut known.is_earlier);
        if entry.is_moved && !is_earlier || known.stage == TunnelStage::Announced {
            known.stage = stage;
        }
    }

    /// A pod leaves it, or is gone.
    pub(super) fn leave(&mut self, key: &ObjectKey) {
        self.pods.remove(key);
    }

    /// The policies of an announced pod are in force, or it runs. Whether that changes something.
    pub(super) fn start(&mut self, key: &ObjectKey) -> bool {
        let announced = self.pods.get_mut(key).filter(|pod| pod.stage == TunnelStage::Announced);
        announced.map(|pod| pod.stage = TunnelStage::Coming).is_some()
    }

    /// A pod has the rules that judge its tunnel. Whether that is news.
    pub(super) fn loaded(&mut self, key: &ObjectKey) -> bool {
        let coming = self.pods.get_mut(key).filter(|pod| pod.stage == TunnelStage::Coming);
        coming.map(|pod| pod.stage = TunnelStage::Inside).is_some()
    }

    /// Who judges a pod's tunnel.
    pub(super) fn judge(&self, key: &ObjectKey) -> TunnelJudge {
        match self.pods.get(key).map(|pod| pod.stage) {
            None | Some(TunnelStage::Announced) => TunnelJudge::Port,
            Some(TunnelStage::Coming) => TunnelJudge::Coming,
            Some(TunnelStage::Inside) => TunnelJudge::Inside,
        }
    }

    /// Answers when no rules are on their way into the pod any more, whatever has become of them.
    pub(super) fn wait(&mut self, key: &ObjectKey, answer: oneshot::Sender<()>) {
        match self.pods.get_mut(key).filter(|pod| pod.stage == TunnelStage::Coming) {
            Some(pod) => pod.waiting.push(answer),
            None => drop(answer.send(())),
        }
    }

    /// Forgets pods that there are no more; `exists` says which there are.
    pub(super) fn retain(&mut self, exists: impl Fn(&ObjectKey) -> bool) {
        self.pods.retain(|key, pod| pod.stage == TunnelStage::Announced || exists(key));
    }

    /// The node has what there is to know of a pod.
    pub(super) fn answer(&mut self, key: &ObjectKey) {
        let settled = self.pods.get_mut(key).filter(|pod| pod.stage != TunnelStage::Coming);
        for answer in settled.into_iter().flat_map(|pod| pod.waiting.drain(..)) {
            // Who waited may have gone.
            let _ = answer.send(());
        }
    }
}

// === impl PolicyState ===

impl PolicyState {
    /// A pod comes into ambient mode.
    pub(super) fn enter_tunnel(&mut self, pod: &PodRef, entry: TunnelEntry) {
        let key = key_of(pod);
        self.tunnels.enter(key.clone(), entry);
        self.tunnel(&key);
    }

    /// A pod leaves ambient mode.
    pub(super) fn leave_tunnel(&mut self, pod: &PodRef) {
        let key = key_of(pod);
        self.tunnels.leave(&key);
        self.tunnel(&key);
    }

    /// Answers when no rules are on their way into the pod.
    pub(super) fn await_tunnel(&mut self, pod: &PodRef, answer: oneshot::Sender<()>) {
        if self.stage == FollowStage::Remembers {
            // To the node the tunnel is a port as any other until everything is listed, so that nothing needs to be judged inside.
            let _ = answer.send(());
        } else {
            self.tunnels.wait(&key_of(pod), answer);
        }
    }

    /// Who judges a pod's tunnel may have changed.
    fn tunnel(&mut self, key: &ObjectKey) {
        match self.stage {
            FollowStage::Follows => self.pod(key, &[]),
            FollowStage::Remembers => {}
            FollowStage::Lists | FollowStage::Idle => {
                // Nothing is judged yet, and nothing is loaded.
                self.tunnels.loaded(key);
                self.tunnels.answer(key);
            }
        }
    }
}
