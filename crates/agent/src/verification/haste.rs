//! What cannot wait for a look: to hear of changes in a namespace before anything is compared there, and what a mode does at once.

use std::sync::Arc;
use std::time::Duration;

use facts::PodRef;
use kernel::watch::KeptSockets;
use netns::{Inside, Netns};

use super::entry::VerifiedSandbox;
use super::verifier::PodVerifier;
use super::{ActAtOnce, VerifiedMode};
use crate::slots::{Slots, Task};

/// How long it is waited for more that is told while nobody can tell what it is.
const MOMENT: Duration = Duration::from_millis(2);

/// What is to be done in a pod's namespace at once.
pub(super) struct ActInNetns {
    pod: PodRef,
    netns: Arc<Netns>,
    act: ActAtOnce,
}

impl ActInNetns {
    pub(super) async fn run(self, slots: Arc<Slots>) {
        let Self { pod, netns, act } = self;
        let _ = slots.run(&pod, Task::MakeWay, move || netns.enter(act)).await;
    }
}

impl PodVerifier {
    /// Hears of changes in a namespace on which work is under way, so that it cannot be looked at yet.
    pub(super) async fn listen(self: Arc<Self>, number: u64) {
        let (pod, mode, netns, kept) = {
            let sandboxes = self.sandboxes();
            let Some(entry) = sandboxes.entries.get(&number) else { return };
            (entry.pod.clone(), entry.mode.clone(), entry.target.netns.clone(), entry.kept.clone())
        };
        let (verifier, of) = (self.clone(), pod.clone());
        let open = move || {
            netns.enter(|inside| {
                let Ok(mut kept) = kept.try_lock() else { return };
                if kept.is_none() {
                    *kept = KeptSockets::open_inside(inside, &netns).ok();
                    kept.iter().for_each(|kept| verifier.opened(number, (&*mode, &of), inside, kept));
                }
            })
        };
        // The next look tries it again.
        let _ = self.parts.slots.run(&pod, Task::MakeWay, open).await;
    }

    /// Waits for what the kernel tells from now on, and does at once what is to be done already.
    pub(super) fn opened(
        &self,
        number: u64,
        (mode, pod): (&dyn VerifiedMode, &PodRef),
        inside: &Inside,
        kept: &KeptSockets,
    ) {
        self.wait_for_events(number, kept);
        if self.policy.leaves().is_none()
            && let Some(act) = mode.at_once(pod)
        {
            act(inside);
        }
    }

    fn wait_for_events(&self, number: u64, kept: &KeptSockets) {
        if let Some(watch) = self.watch.get()
            && let Err(error) = watch.add(kept, number)
        {
            let text = "changes in a pod's network namespace are not heard of; it is looked at by turns";
            self.parts.log.warn(text, &[("error", &error)]);
        }
    }

    /// Does in a moment what is to be done at once, for all that is told until then: answers to questions are told, too.
    pub(super) async fn act_meanwhile(self: Arc<Self>, number: u64) {
        tokio::time::sleep(MOMENT).await;
        let act = self.sandboxes().change(number, |entry| {
            entry.meanwhile.waits = false;
            self.act_of(entry)
        });
        if let Some(act) = act.flatten() {
            act.run(self.parts.slots.clone()).await;
        }
    }

    /// Work under way is no reason to wait: it is one transaction, which the kernel refuses where that has changed the same.
    pub(super) fn act_of(&self, entry: &VerifiedSandbox) -> Option<ActInNetns> {
        let act = if self.policy.leaves().is_none() { entry.mode.at_once(&entry.pod) } else { None };
        Some(ActInNetns { pod: entry.pod.clone(), netns: entry.target.netns.clone(), act: act? })
    }
}
