//! Sandboxes that come to nothing. A runtime whose ADD fails, in this plugin or in one after it, takes the sandbox down and makes another. Of the
//! first one nothing may be left: no ztunnel gets its namespace, no probe its address, and nobody says that the pod is in the mesh.

use std::sync::Arc;
use std::time::Duration;

use facts::PodRef;
use intent::Observation;

use super::Ambient;
use super::members::{GivenNetns, Member, MemberState};

/// Pauses before it is looked whether a sandbox is gone whose DEL a plugin was called for. Runtimes remove the namespace right after that.
const LOOKS: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
    Duration::from_secs(4),
    Duration::from_secs(10),
];

impl Ambient {
    /// Takes everything of an announced pod back. One that was in the mesh in the same namespace before stays: its ADD was repeated. Whoever calls has
    /// the pod's turn.
    pub(super) async fn give_up(&self, key: &PodRef, before: Option<Member>) {
        let Some(member) = self.pods.members.get(&key.uid) else { return };
        let stays = |before: &Member| !before.announced && before.netns == member.netns;
        if before.as_ref().is_some_and(stays) {
            return;
        }
        let is_gone = Self::is_gone(&member);
        let mut work = self.work_on(member);
        work.change(|member| {
            member.state = MemberState::Leaving;
            if is_gone {
                member.have.see(Observation::SandboxGone);
            }
        });
        self.tell_given_up(key, &work.give_up().await);
    }

    /// A plugin was called because a sandbox of this pod ends. Of a pod that does not run yet, its ADD may have failed after this plugin's part of it.
    pub(crate) fn sandbox_ends(self: &Arc<Self>, namespace: &str, name: &str) {
        let uid = {
            let index = self.cluster.index();
            let pod = index.pod(namespace, name).filter(|pod| !pod.is_running() && !pod.is_terminal());
            pod.and_then(|pod| pod.uid().map(str::to_owned))
        };
        let Some(uid) = uid
            .filter(|uid| self.pods.members.get(uid).is_some_and(|member| member.given == GivenNetns::Path))
        else {
            return;
        };
        let ambient = Arc::downgrade(self);
        tokio::spawn(async move {
            for pause in LOOKS {
                tokio::time::sleep(pause).await;
                let Some(ambient) = ambient.upgrade() else { return };
                // A DEL of an earlier sandbox may come when there is the next one, which is not gone.
                match ambient.pods.members.get(&uid) {
                    None => return,
                    Some(member) if Self::is_gone(&member) => return ambient.miss_at_once(member).await,
                    Some(_) => {}
                }
            }
        });
    }

    /// The sandbox is gone, and it is known why.
    async fn miss_at_once(&self, member: Member) {
        let _turn = self.pods.members.turn(&member.key.uid).await;
        if self.pods.members.get(&member.key.uid).filter(Self::is_gone).is_some() {
            self.pods.members.change(&member.key.uid, Member::doubt);
            self.pods.queue.push(member.key);
        }
    }
}
