//! How the watches are: which kinds have been listed, and which watches stand.

use std::collections::BTreeMap;
use std::fmt;

/// What is watched, by the name that it has in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchName(&'static str);

/// How the watches are. Those of the agent's own DaemonSet and node are left out: no pod waits for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchState {
    /// Whether pods and namespaces have been listed once.
    pub synced: bool,
    /// The last error, while not all of it stands.
    pub last_error: Option<String>,
    watches: BTreeMap<WatchName, Watch>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Watch {
    listed: bool,
    stands: bool,
}

// === impl WatchName ===

impl WatchName {
    /// Pods of this node, from the API server.
    pub const PODS: Self = Self("pods");
    /// Namespaces, from the API server.
    pub const NAMESPACES: Self = Self("namespaces");
    /// A directory of manifests, which has objects of all kinds.
    pub const MANIFESTS: Self = Self("manifests");
    /// The agent's DaemonSet.
    pub const DAEMONSET: Self = Self("daemonset");
    /// The node's own object.
    pub const NODE: Self = Self("node");
    /// Pods of the whole cluster.
    pub const PEERS: Self = Self("peers");

    /// Addresses of all nodes.
    pub const ALL_NODES: Self = Self("all nodes");

    /// A kind that was asked for, by its name in paths.
    pub(crate) const fn of(plural: &'static str) -> Self {
        Self(plural)
    }

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// Whether it is about the agent itself.
    pub fn is_own(self) -> bool {
        self == Self::DAEMONSET || self == Self::NODE
    }
}

impl fmt::Display for WatchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

// === impl WatchState ===

impl WatchState {
    /// Whether a watch stands, or a directory of manifests is read.
    pub fn stands(&self, what: WatchName) -> bool {
        self.watches.get(&what).is_some_and(|watch| watch.stands)
    }

    /// Whether everything of it was listed once.
    pub fn is_listed(&self, what: WatchName) -> bool {
        self.watches.get(&what).is_some_and(|watch| watch.listed)
    }

    /// What has not been listed yet.
    pub fn pending(&self) -> Vec<WatchName> {
        self.watches.iter().filter(|(_, watch)| !watch.listed).map(|(what, _)| *what).collect()
    }

    /// It is watched from now on.
    pub(crate) fn expect(&mut self, what: WatchName) {
        self.watches.entry(what).or_default();
    }

    /// It is not watched any more.
    pub(crate) fn unexpect(&mut self, what: WatchName) {
        self.watches.remove(&what);
    }

    /// It was listed; whether it was so for the first time.
    pub(crate) fn set_listed(&mut self, what: WatchName) -> bool {
        self.watches.get_mut(&what).is_some_and(|watch| !std::mem::replace(&mut watch.listed, true))
    }

    /// Its watch stands, or does not because of an error.
    pub(crate) fn set_stands(&mut self, what: WatchName, error: Option<&impl fmt::Display>) {
        let Some(watch) = self.watches.get_mut(&what) else { return };
        watch.stands = error.is_none();
        if let Some(error) = error {
            self.last_error = Some(error.to_string());
        } else if self.watches.values().all(|watch| watch.stands) {
            self.last_error = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_yet_is_named() {
        let mut state = WatchState::default();
        for what in [WatchName::PODS, WatchName::NAMESPACES, WatchName::of("networkpolicies")] {
            state.expect(what);
        }
        assert!(
            state.set_listed(WatchName::PODS)
                && !state.set_listed(WatchName::PODS)
                && !state.set_listed(WatchName::NODE)
        );
        let names: Vec<_> = state.pending().into_iter().map(WatchName::name).collect();
        assert_eq!(names, ["namespaces", "networkpolicies"]);
        assert!(state.is_listed(WatchName::PODS) && !state.is_listed(WatchName::NAMESPACES));
    }

    #[test]
    fn an_error_counts_until_everything_stands() {
        let mut state = WatchState::default();
        let none = None::<&String>;
        for what in [WatchName::PODS, WatchName::NAMESPACES] {
            state.expect(what);
            state.set_stands(what, none);
        }
        state.set_stands(WatchName::PODS, Some(&"refused"));
        state.set_stands(WatchName::NODE, Some(&"nobody waits for it"));
        state.set_stands(WatchName::NAMESPACES, none);
        assert_eq!((state.stands(WatchName::PODS), state.last_error.as_deref()), (false, Some("refused")));
        state.set_stands(WatchName::PODS, none);
        assert!(state.stands(WatchName::PODS) && state.last_error.is_none());
    }
}
