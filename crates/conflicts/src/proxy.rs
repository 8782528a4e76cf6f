//! The proxy of a pod, as a plan knows it.

use ruleset::{Action, Match, Plan};

/// Where a plan leads packets, and by what it knows what the proxy sends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlannedProxy {
    /// Ports that it leads packets to.
    pub ports: Vec<u16>,
    /// Whether it leads them to transparent sockets.
    pub tproxy: bool,
    /// Users whose packets are the proxy's.
    pub uids: Vec<u32>,
    /// Groups whose packets are the proxy's.
    pub gids: Vec<u32>,
}

impl PlannedProxy {
    /// The proxy of a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let mut proxy = Self::default();
        let chains = plan.layers.iter().flat_map(|layer| &layer.tables).flat_map(|table| &table.chains);
        for rule in chains.flat_map(|chain| &chain.rules) {
            match rule.action {
                Action::Redirect { port } => proxy.ports.push(port),
                Action::Tproxy { port, .. } => {
                    proxy.ports.push(port);
                    proxy.tproxy = true;
                }
                // A user or group may be left alone without being the proxy's.
                Action::Return => continue,
                _ => {}
            }
            for condition in &rule.matches {
                match *condition {
                    Match::Uid { uid, not: false } => proxy.uids.push(uid),
                    Match::Gid { gid, not: false } => proxy.gids.push(gid),
                    _ => {}
                }
            }
        }
        for ids in [&mut proxy.uids, &mut proxy.gids] {
            ids.sort_unstable();
            ids.dedup();
        }
        proxy
    }

    /// Whether packets of this user and group are the proxy's.
    #[must_use]
    pub fn is_owner(&self, uid: u32, gid: u32) -> bool {
        self.uids.contains(&uid) || self.gids.contains(&gid)
    }
}
