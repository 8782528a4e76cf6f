//! Verdicts as people read them.

use std::fmt;

use super::{FlowVerdict, Ground, Judgement, RuleRef};

impl fmt::Display for FlowVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "egress {}; ingress {}", self.egress, self.ingress)
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.is_allowed() { "allowed" } else { "denied" }, self.ground)?;
        if self.ground == Ground::NoRuleMatched {
            write!(f, " of {}", list(&self.selecting))?;
        }
        self.audited.as_ref().map_or(Ok(()), |rule| write!(f, "; {rule} would deny it"))
    }
}

impl Ground {
    /// A word for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotAPod => "not-a-pod",
            Self::Loopback => "loopback",
            Self::OwnNode => "local-node",
            Self::NotIsolated | Self::Undecided => "not-isolated",
            Self::Accepted(_) | Self::Denied(_) => "policy",
            Self::TunnelOpened(_) => "hbone",
            Self::NoRuleMatched => "no-rule-matched",
        }
    }

    /// The rules that decide.
    pub fn rules(&self) -> &[RuleRef] {
        match self {
            Self::Accepted(rules) | Self::TunnelOpened(rules) => rules,
            Self::Denied(rule) => std::slice::from_ref(rule),
            _ => &[],
        }
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPod => f.write_str("not a pod that policies are about"),
            Self::Loopback => f.write_str("the pod itself"),
            Self::OwnNode => f.write_str("the pod's own node"),
            Self::NotIsolated => f.write_str("no policy selects the pod"),
            Self::Undecided => f.write_str("no rule decides, and the pod is not isolated"),
            Self::Accepted(rules) => write!(f, "by {}", list(rules)),
            Self::TunnelOpened(rules) => write!(f, "by {}, which opens the tunnel", list(rules)),
            Self::Denied(rule) => write!(f, "by {rule}"),
            Self::NoRuleMatched => f.write_str("no rule matches"),
        }
    }
}

/// `x/p ingress[0] from[1] ports[2]`, by the names of the fields; `tenant red ingress[3] "sameTenant" from[0]` where rules have names.
impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, direction, rule, name, peer, port } = self;
        write!(f, "{policy} {direction}[{rule}]")?;
        if !name.is_empty() {
            write!(f, " {name:?}")?;
        }
        if let Some(peer) = peer {
            write!(f, " {}[{peer}]", direction.peers_field())?;
        }
        port.map_or(Ok(()), |port| write!(f, " ports[{port}]"))
    }
}

fn list<T: fmt::Display>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
