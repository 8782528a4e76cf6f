//! What the node's rules have counted of packets that policies deny, or would deny, in either backend.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kernel::iptables::{self, Iptables};
use kernel::nft::{LogCount, LogCounts};
use netns::Host;
use policy::compile::{LogMark, POLICY_OWNER, is_denying_chain};
use ruleset::iptables::own_chain_name;
use ruleset::{Backend, TableKind};

/// Of more classes all counters are read at once.
const FEW_CLASSES: usize = 16;
/// How often programs read counters of iptables while something is denied.
const BETWEEN_PROGRAMS: Duration = Duration::from_secs(2);
/// What names of chains begin with, those that drop and those that answer.
const CHAINS: &str = "istio-n";

/// See the module.
pub(super) enum DenialCounts {
    Nftables(LogCounts),
    Iptables { host: Host, iptables: Iptables, read: Option<Instant> },
}

/// Why counters are not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum CountError {
    #[error("enter the network namespace: {0}")]
    Netns(#[from] netns::Error),
    #[error("{0}")]
    Nftables(#[from] kernel::nft::Error),
    #[error("read counters of rules: {0}")]
    Iptables(#[from] iptables::Error),
}

// === impl DenialCounts ===

impl DenialCounts {
    /// Of the backend that has the rules.
    pub(super) fn open(host: Host, backend: Backend, iptables: Iptables) -> Result<Self, CountError> {
        match backend {
            Backend::Nftables => {
                let open =
                    host.netns().enter(|inside| LogCounts::open(inside, POLICY_OWNER, TableKind::Mangle));
                Ok(Self::Nftables(open??))
            }
            Backend::Iptables => Ok(Self::Iptables { host, iptables, read: None }),
        }
    }

    /// All that was counted so far.
    pub(super) fn all(&mut self) -> Result<BTreeMap<LogMark, u64>, CountError> {
        match self {
            Self::Nftables(counts) => {
                let all = counts.read(None)?;
                Ok(by_mark(all.into_iter().filter(|count| is_denying_chain(&count.chain))))
            }
            Self::Iptables { host, iptables, .. } => {
                let beginning = own_chain_name(CHAINS);
                let read = host.enter(|inside| iptables.log_counts(inside, TableKind::Mangle, &beginning));
                Ok(by_mark(read??))
            }
        }
    }

    /// What was counted so far of these; nothing where it is too early to ask again.
    pub(super) fn of(&mut self, marks: &[LogMark]) -> Result<BTreeMap<LogMark, u64>, CountError> {
        match self {
            _ if marks.is_empty() => return Ok(BTreeMap::new()),
            Self::Nftables(counts) if marks.len() <= FEW_CLASSES => {
                let mut found = Vec::new();
                let chains: BTreeSet<String> = marks.iter().map(|mark| mark.chain()).collect();
                for chain in chains {
                    found.extend(counts.read(Some(&chain))?);
                }
                let mut found = by_mark(found);
                found.retain(|mark, _| marks.contains(mark));
                return Ok(found);
            }
            Self::Iptables { read, .. } => {
                if read.is_some_and(|read| read.elapsed() < BETWEEN_PROGRAMS) {
                    return Ok(BTreeMap::new());
                }
                *read = Some(Instant::now());
            }
            Self::Nftables(_) => {}
        }
        let mut all = self.all()?;
        all.retain(|mark, _| marks.contains(mark));
        Ok(all)
    }
}

/// Families of iptables have a rule each.
fn by_mark(counts: impl IntoIterator<Item = LogCount>) -> BTreeMap<LogMark, u64> {
    let mut found = BTreeMap::new();
    for count in counts {
        if let Some(mark) = LogMark::read(&count.prefix) {
            *found.entry(mark).or_default() += count.packets;
        }
    }
    found
}
