//! Pods that start guarded: their plugins were not told in time that their policies are in force, and ask no more. The guard goes, or the pod's rules take
//! its place, when it is known what the pod is to have.

use cluster::news::ObjectKey;
use facts::PodRef;
use policy::index::LocalName;

use super::{FollowStage, PolicyState, name_of};
use crate::world::key_of;

impl PolicyState {
    /// The plugin of a pod was not told, or has not waited.
    pub(in super::super) fn stays_guarded(&mut self, pod: &PodRef) {
        self.guarded.insert(name_of(&key_of(pod)));
    }

    /// Its plugin does what is told.
    pub(in super::super) fn is_told(&mut self, pod: &PodRef) {
        self.guarded.remove(&name_of(&key_of(pod)));
    }

    /// Ends the guards of pods of which enough is known by now.
    pub(in super::super) fn end_guards(&mut self) {
        // The kernel lacks a part of what is to take their place.
        if self.behind && self.stage != FollowStage::Idle {
            return;
        }
        let known: Vec<LocalName> =
            self.guarded.iter().filter(|name| self.may_end_guard(name)).cloned().collect();
        for name in known {
            self.guarded.remove(&name);
            self.points.end_guard(&name);
        }
    }

    fn may_end_guard(&self, name: &LocalName) -> bool {
        let key = ObjectKey::new(&*name.namespace, &*name.name);
        let is_known = match self.stage {
            FollowStage::Lists => false,
            FollowStage::Idle => true,
            FollowStage::Remembers | FollowStage::Follows => self.index.classes_of(name).is_some(),
        };
        is_known && self.may_judge(&key).is_ok() && self.points.is_settled(name, &self.index)
    }

    /// Forgets pods that are gone. One whose watch is behind its plugin is not yet there.
    pub(super) fn sweep_guarded(&mut self) {
        let (index, unknown) = (self.sources.cluster.index(), &self.unknown);
        self.guarded.retain(|name| {
            index.pod(&name.namespace, &name.name).is_some()
                || unknown.contains(&ObjectKey::new(&*name.namespace, &*name.name))
        });
    }
}
