//! What a pod has of ours, as far as it is known: from a record, from acts that were done, or from looking. It is the same type in each case.

use std::net::IpAddr;

use crate::act::Act;

/// What a pod has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Have {
    /// A record of the pod is kept.
    pub recorded: bool,
    /// Where it is.
    pub namespace: PodNetns,
    /// Our rules in its namespace.
    pub rules: Rules,
    /// The namespace was told by us not to pick up connections that it has not seen begin.
    pub strict: bool,
    /// Connection tracking may remember what was redirected.
    pub entries: bool,
    /// What ztunnels know of it.
    pub ztunnel: Ztunnel,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses that were its own and may be in the node's sets still.
    pub stale: Vec<IpAddr>,
    /// Whether its addresses are in the node's sets.
    pub probes: Probes,
    /// The annotation that the API server has, if it says that the pod has something of ours.
    pub mark: Option<RedirectionMark>,
}

/// Where a pod's network namespace is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PodNetns {
    /// It is to be found.
    #[default]
    Unknown,
    /// It is open.
    Known,
    /// The runtime has removed the sandbox; everything inside went with it.
    Gone,
}

/// Our rules in a namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Rules {
    /// None.
    #[default]
    None,
    /// Something may be there: they were to be loaded, and nobody has seen the end of it.
    Maybe,
    /// They redirect to ztunnel.
    Capture(Look),
    /// Only those that let open connections go on.
    Drain {
        /// Since when, in seconds since 1970.
        since: u64,
    },
    /// Those that redirect were to be loaded over those that let open connections go on, and nobody has seen the end of it.
    Reload {
        /// Since when there were only the others, in seconds since 1970.
        since: u64,
    },
    /// Nothing that redirects or translates; routes or settings may be left.
    Rest,
}

/// What was seen of rules that redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Look {
    /// Nothing, or that they differ from the plan.
    Unknown,
    /// They are as planned.
    AsPlanned,
    /// They are of another layout and are left so until the next verification.
    Left,
    /// An agent before this one applied them, and the turn to look comes.
    Due,
}

/// What ztunnels know of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Ztunnel {
    /// Nothing.
    #[default]
    None,
    /// A ztunnel that connects hears of it; no answer is known.
    Listed,
    /// The last answer: a ztunnel has taken it.
    Taken,
    /// The last answer: a ztunnel has not taken it.
    Refused,
    /// A ztunnel that connects does not hear of it; others may have it still.
    Unlisted,
}

/// Whether a pod's addresses are in the node's sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Probes {
    /// None is.
    #[default]
    None,
    /// Some may be.
    Maybe,
    /// All are.
    In,
}

/// What a pod's annotation says of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RedirectionMark {
    /// It is wholly in the mesh.
    Enabled,
    /// Its rules are in place, and something else is missing.
    Pending,
}

/// What was seen that is not the effect of an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// The pod is in another namespace than before: that of a new sandbox, which has nothing of ours.
    NewSandbox,
    /// The sandbox is gone.
    SandboxGone,
    /// The pod's namespace is not known any more, or was announced anew.
    Lost,
    /// The pod is where it was.
    Found,
    /// The pod is not one that could have had rules: it is in the node's namespace, or in a virtual machine.
    NeverHadRules,
    /// There are no rules that redirect or translate.
    NoRules,
    /// So are its rules that redirect.
    Rules(Look),
    /// Nobody knows what of ours is in its namespace.
    RulesInDoubt,
    /// The namespace was told not to pick up connections that it has not seen begin.
    Strict,
    /// A ztunnel that was told of it has taken it.
    Taken,
    /// A ztunnel that was told of it has not.
    Refused,
    /// Nobody knows whether its addresses are in the node's sets.
    ProbesInDoubt,
    /// The API server shows this annotation.
    Shown(Option<RedirectionMark>),
    /// The pod had something of ours before anything was known of it.
    Inherited,
}

// === impl Have ===

impl Have {
    /// A pod that is noted and has nothing yet.
    pub fn new() -> Self {
        Self { recorded: true, ..Self::default() }
    }

    /// An act begins. What it takes away does not count from here on, and what it brings may be there, even if its end is never seen.
    pub fn begin(&mut self, act: &Act) {
        match act {
            Act::TellZtunnel if matches!(self.ztunnel, Ztunnel::None | Ztunnel::Unlisted) => {
                self.ztunnel = Ztunnel::Listed;
            }
            Act::RemoveFromZtunnel if self.ztunnel != Ztunnel::None => self.ztunnel = Ztunnel::Unlisted,
            Act::AddProbes | Act::RemoveProbes => self.probes = Probes::Maybe,
            Act::LoadRules { .. } => {
                self.rules = match self.rules {
                    Rules::None | Rules::Rest => Rules::Maybe,
                    Rules::Drain { since } => Rules::Reload { since },
                    rules => rules,
                }
            }
            _ => {}
        }
    }

    /// An act is done; `now` is the time in seconds since 1970. Nothing else writes down what an act does.
    pub fn after(&mut self, act: &Act, now: u64) {
        match act {
            Act::Locate => {
                // What is found after a sandbox is gone is another one.
                if self.namespace == PodNetns::Gone {
                    self.see(Observation::NewSandbox);
                }
                self.namespace = PodNetns::Known;
            }
            Act::TakeAddresses(addresses) => self.take_addresses(addresses),
            Act::RemoveStaleProbes => self.stale.clear(),
            Act::LoadRules { .. } | Act::RepairRules => {
                (self.rules, self.entries) = (Rules::Capture(Look::AsPlanned), true);
            }
            Act::TellZtunnel => self.ztunnel = Ztunnel::Taken,
            Act::AddProbes => self.probes = Probes::In,
            Act::Annotate(mark) => self.mark = *mark,
            Act::Drain => {
                if self.may_redirect() {
                    (self.rules, self.entries) = (Rules::Drain { since: now }, true);
                }
            }
            Act::RemoveProbes => {
                self.probes = Probes::None;
                self.stale.clear();
            }
            Act::RemoveFromZtunnel => self.ztunnel = Ztunnel::None,
            Act::Wait | Act::EndConnections => {}
            Act::RemoveRules => self.rules = Rules::None,
            Act::RestoreTracking => self.strict = false,
            Act::ForgetEntries => self.entries = false,
            Act::Forget => *self = Self::default(),
        }
    }

    /// An act failed. `overdue`: its work may be done still, by a thread for which nobody waits any more.
    pub fn failed(&mut self, act: &Act, overdue: bool) {
        let loads = matches!(act, Act::LoadRules { .. } | Act::RepairRules);
        match self.rules {
            Rules::Capture(_) if loads => self.rules = Rules::Capture(Look::Unknown),
            _ if loads && overdue => (self.rules, self.entries) = (Rules::Capture(Look::Unknown), true),
            Rules::Reload { since } if loads => self.rules = Rules::Drain { since },
            _ => {}
        }
    }

    /// Something was seen.
    pub fn see(&mut self, finding: Observation) {
        match finding {
            Observation::NewSandbox => {
                self.empty_namespace();
                self.namespace = PodNetns::Known;
                if matches!(self.ztunnel, Ztunnel::Taken | Ztunnel::Refused) {
                    self.ztunnel = Ztunnel::Listed;
                }
            }
            Observation::SandboxGone => self.namespace = PodNetns::Gone,
            Observation::Lost => self.namespace = PodNetns::Unknown,
            Observation::Found => self.namespace = PodNetns::Known,
            Observation::NeverHadRules => self.empty_namespace(),
            Observation::NoRules => self.rules = Rules::Rest,
            Observation::RulesInDoubt => self.rules = Rules::Maybe,
            Observation::Rules(look) => self.rules = Rules::Capture(look),
            Observation::Strict => self.strict = true,
            // An answer about a pod that is to be gone says nothing any more.
            Observation::Taken | Observation::Refused if !self.is_listed() => {}
            Observation::Taken => self.ztunnel = Ztunnel::Taken,
            Observation::Refused => self.ztunnel = Ztunnel::Refused,
            Observation::ProbesInDoubt => self.probes = Probes::Maybe,
            Observation::Shown(mark) => self.mark = mark,
            Observation::Inherited => {
                (self.rules, self.entries) = (Rules::Capture(Look::Unknown), true);
                (self.ztunnel, self.probes) = (Ztunnel::Unlisted, Probes::Maybe);
            }
        }
    }

    /// Whether rules that redirect are in force.
    pub fn is_captured(&self) -> bool {
        matches!(self.rules, Rules::Capture(_))
    }

    /// Whether rules that redirect are in force, or may be.
    pub fn may_redirect(&self) -> bool {
        matches!(self.rules, Rules::Maybe | Rules::Capture(_) | Rules::Reload { .. })
    }

    /// What was seen of rules that redirect.
    pub fn look(&self) -> Option<Look> {
        match self.rules {
            Rules::Capture(look) => Some(look),
            _ => None,
        }
    }

    /// Whether a ztunnel that connects hears of it.
    pub fn is_listed(&self) -> bool {
        matches!(self.ztunnel, Ztunnel::Listed | Ztunnel::Taken | Ztunnel::Refused)
    }

    /// Whether everything was seen that makes a pod one in the mesh: rules in the kernel, addresses in the node's sets, a ztunnel's answer.
    pub fn is_complete(&self) -> bool {
        let rules_loaded = self.namespace == PodNetns::Known && self.look() == Some(Look::AsPlanned);
        rules_loaded && self.probes == Probes::In && self.ztunnel == Ztunnel::Taken
    }

    /// The annotation that is true where the pod is not wholly in.
    pub fn true_mark(&self) -> Option<RedirectionMark> {
        (self.look() == Some(Look::AsPlanned)).then_some(RedirectionMark::Pending)
    }

    /// Whether these are its addresses, in whatever order.
    pub fn has_addresses(&self, addresses: &[IpAddr]) -> bool {
        let within = |these: &[IpAddr], those: &[IpAddr]| these.iter().all(|ip| those.contains(ip));
        within(addresses, &self.addresses) && within(&self.addresses, addresses)
    }

    fn take_addresses(&mut self, addresses: &[IpAddr]) {
        if !self.has_addresses(addresses) {
            let before = std::mem::take(&mut self.addresses);
            self.stale.extend(before.into_iter().filter(|_| self.probes != Probes::None));
            self.probes = if self.probes == Probes::None { Probes::None } else { Probes::Maybe };
        }
        self.addresses = addresses.to_vec();
        self.stale.retain(|ip| !addresses.contains(ip));
    }

    fn empty_namespace(&mut self) {
        (self.rules, self.strict, self.entries) = (Rules::None, false, false);
    }
}
