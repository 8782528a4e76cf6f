//! What is told of what is known.

use std::time::Duration;

use cluster::news::ObjectKey;
use policy::index::PolicyEffect;
use rundir::denials::DenialRecord;

use super::{PolicyState, policy_name, world};
use crate::denials::{DenialBatch, join};
use crate::news::{PolicyCounts, PolicyNews};

/// A pod that is older is not new to rules because it was just created.
const NEW_POD: Duration = Duration::from_secs(600);

impl PolicyState {
    /// Says whose packets were denied, and by which policies.
    pub(crate) fn denied(&self, batch: &DenialBatch) -> Vec<DenialRecord> {
        let peers = self.sources.peers.read();
        let world = world(&peers, &self.local, &self.namespaces);
        join(batch, &world, self.local.own_node(), (&self.index, &self.logged))
    }

    /// Tells of entries that do not count, once for each generation of a policy.
    pub(super) fn note_refused(&mut self, key: &ObjectKey) {
        let policies = self.sources.policies.read();
        let policy = policies.get(&key.namespace, &key.name).filter(|policy| !policy.refused.is_empty());
        let Some(policy) = policy else {
            self.refused.remove(key);
            return;
        };
        let now = (policy.generation, policy.refused.count);
        if self.refused.insert(key.clone(), now) != Some(now) {
            let name = policy_name(&key.namespace, &key.name);
            let selects = self.index.classes().any(|class| class.policies.contains(&name));
            self.points.tell(PolicyNews::Refused { policy, selects });
        }
    }

    /// Counts what there is.
    pub(super) fn count(&self) {
        let refused = self.refused.values().map(|(_, entries)| entries).sum();
        self.points.tell(PolicyNews::Counted(&PolicyCounts::of(&self.index, refused, self.points.usual())));
    }

    /// Tells how long it took until a pod of the cluster is known to rules; `created` is when it was created.
    pub(super) fn tell_peer(&self, created: Option<u64>, effects: &[PolicyEffect]) {
        let gains = |effect: &PolicyEffect| {
            matches!(effect, PolicyEffect::SetGains(..) | PolicyEffect::SetAppears(..))
        };
        let age = created.and_then(cluster::time::since_digits).filter(|age| *age < NEW_POD);
        if let Some(age) = age.filter(|_| !self.behind && effects.iter().any(gains)) {
            self.points.tell(PolicyNews::PeerKnown(age));
        }
    }
}
