//! The agent's DaemonSet and the node, of which there is one each.

use facts::PodRef;

use super::Index;
use crate::daemonset::{DaemonSet, Node, Seen};

impl Index {
    /// What was seen of them.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Another number after each change of what was seen.
    pub(crate) fn times_seen(&self) -> u64 {
        self.times_seen
    }

    pub(crate) fn begin_daemonset(&mut self, name: &str) {
        self.listed.0 = false;
        self.see(|seen| name.clone_into(&mut seen.name));
    }

    pub(crate) fn commit_daemonset(&mut self) -> Vec<PodRef> {
        if !self.listed.0 {
            self.see(Seen::gone);
        }
        Vec::new()
    }

    pub(crate) fn apply_daemonset(&mut self, set: DaemonSet) -> Vec<PodRef> {
        self.keep_daemonset();
        self.see(|seen| seen.there(set));
        Vec::new()
    }

    pub(crate) fn delete_daemonset(&mut self) -> Vec<PodRef> {
        self.see(Seen::gone);
        Vec::new()
    }

    /// It exists, and cannot be read now.
    pub(crate) fn keep_daemonset(&mut self) {
        self.listed.0 = true;
    }

    pub(crate) fn begin_node(&mut self) {
        self.listed.1 = false;
    }

    pub(crate) fn commit_node(&mut self) -> Vec<PodRef> {
        if !self.listed.1 {
            self.delete_node();
        }
        Vec::new()
    }

    pub(crate) fn apply_node(&mut self, node: Node) -> Vec<PodRef> {
        self.keep_node();
        self.see(|seen| seen.node = Some(node));
        Vec::new()
    }

    pub(crate) fn delete_node(&mut self) -> Vec<PodRef> {
        self.see(|seen| seen.node = None);
        Vec::new()
    }

    /// It exists, and cannot be read now.
    pub(crate) fn keep_node(&mut self) {
        self.listed.1 = true;
    }

    fn see(&mut self, change: impl FnOnce(&mut Seen)) {
        let before = self.seen.clone();
        change(&mut self.seen);
        self.times_seen += u64::from(self.seen != before);
    }
}
