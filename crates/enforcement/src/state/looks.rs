//! Whether the node sees the packets of its pods.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::news::ObjectKey;
use kernel::pair::PodInterface;
use netns::Netns;
use policy::index::LocalName;
use tokio::sync::watch;

use super::super::point::{EnforcementPoint, PointError, PointLook};
use super::super::sight::AttachedPod;
use super::{FollowStage, PolicyState};

/// Who removes rules may not be at the end of it, and nobody tells of ipsets: so long after a repair all of it is looked at once more.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A pod's network namespace, and its interface in the cluster's network.
pub type PodNetwork = (Arc<Netns>, PodInterface);

impl PolicyState {
    /// Looks at what the kernel has.
    pub(in super::super) fn verify(&mut self, look: PointLook) -> Result<(), PointError> {
        if look == PointLook::Everything {
            self.count();
        }
        if self.behind || self.stage == FollowStage::Lists {
            return Ok(());
        }
        let kept = self.remembered.as_ref().map(|remembered| remembered.addresses());
        let verified = self.points.verify(&self.index, look, kept);
        self.behind = verified.is_err();
        if verified? && look == PointLook::Disturbed {
            self.look_again.get_or_insert(Instant::now() + LOOK_AGAIN);
        }
        Ok(())
    }

    /// Whether it is time to look once more at all that was repaired; that counts.
    pub(in super::super) fn looks_again(&mut self) -> bool {
        self.look_again.take_if(|at| *at <= Instant::now()).is_some()
    }

    /// Tests whether the node sees the packets of a pod that starts, whose classes are in force at the node.
    pub(super) fn look_at_starting(
        &mut self,
        pod: &LocalName,
        addresses: &[IpAddr],
        network: Option<&PodNetwork>,
    ) -> Result<(), PointError> {
        let Some((netns, interface)) = network.filter(|_| self.judges_pods()) else { return Ok(()) };
        let at = AttachedPod {
            pod: pod.clone(),
            netns: netns.clone(),
            interface: interface.clone(),
            addresses: addresses.into(),
            is_starting: true,
        };
        let looked = self.points.look(&at, &self.index, true);
        if self.points.of(pod) == EnforcementPoint::Pod {
            self.services.changed();
        }
        looked
    }

    /// Says which pods are to be tested, where that is other than before.
    pub(in super::super) fn tell_untested(&self, told: &watch::Sender<BTreeSet<LocalName>>) {
        told.send_if_modified(|before| {
            let is_same = self.untested().eq(before.iter());
            if !is_same {
                *before = self.untested().cloned().collect();
            }
            !is_same
        });
    }

    fn judges_pods(&self) -> bool {
        matches!(self.stage, FollowStage::Follows | FollowStage::Remembers)
    }

    /// Pods whose packets are to be tested.
    fn untested(&self) -> impl Iterator<Item = &LocalName> {
        let pods = self.judges_pods().then(|| self.points.untested());
        pods.into_iter().flatten()
    }

    /// Tests whether the node sees a pod's packets. One that is gone meanwhile is left alone.
    ///
    /// # Errors
    /// A kernel did not take what follows from that.
    pub(in super::super) fn look(&mut self, at: &AttachedPod) -> Result<(), PointError> {
        // Of one whose namespace is not known it is asked again.
        let key = ObjectKey::new(&*at.pod.namespace, &*at.pod.name);
        let is_known =
            self.judges_pods() && self.index.classes_of(&at.pod).is_some() && self.may_judge(&key).is_ok();
        if !is_known {
            return Ok(());
        }
        let looked = self.points.look(at, &self.index, !self.behind);
        self.services.changed();
        self.count();
        looked
    }
}
