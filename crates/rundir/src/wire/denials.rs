//! What policies have denied on a node, or would deny if they were not only tried out, as the agent tells it: in its answers, and as JSON lines.
//!
//! A record is of packets of one connection, or of one kind of message between two ends, that were logged within a moment. The kernel logs so many
//! packets a second of each set of policies; how many more were denied is known by the counters of the rules and told by the next record of that set
//! (`suppressed`). So the packets of all records and the suppressed ones are all that rules denied.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// `schema` of a record. Within it members are only added.
pub const DENIAL_SCHEMA: &str = "istio-cni.denials/v1";
/// `type` of a record.
pub const POLICY_VIOLATION: &str = "policy_violation";
/// The same of packets that passed, because what would deny them is only tried out.
pub const POLICY_WOULD_DENY: &str = "policy_would_deny";

/// Largest report: some thousand records, each with the names of many policies.
pub const MAX_DENIALS_BYTES: usize = 32 << 20;

/// The records that an agent keeps, or the newer ones of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DenialsReport {
    /// The node's name.
    pub node: String,
    /// Which run of an agent numbers the records: another agent begins anew.
    pub run: String,
    /// Whether the agent hears what rules log, and if not, why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deaf: Option<String>,
    /// Packets that the kernel logged and that found no room on the way. They are among the suppressed ones.
    pub lost: u64,
    /// The records, the oldest first.
    pub records: Vec<DenialRecord>,
}

/// Between whom denied packets went, and what they carried: all of it absent where only a number of packets is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeniedConnection {
    /// Who sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<DenialEnd>,
    /// To whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<DenialEnd>,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or a number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Type and code of an ICMP message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<DeniedIcmp>,
    /// Of the first TCP segment, such as `SYN`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tcp_flags: String,
}

/// Packets that were denied, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DenialRecord {
    /// When the first of them was heard of, as RFC 3339 has it.
    pub time: String,
    /// When the last was.
    pub end_time: String,
    /// Its number among the records of one run of an agent, from 1.
    pub seq: u64,
    /// [`POLICY_VIOLATION`] or [`POLICY_WOULD_DENY`].
    #[serde(rename = "type")]
    pub kind: String,
    /// `DROPPED`, or `REJECTED` where the sender is told; `AUDIT` of what would be denied.
    pub verdict: String,
    /// Whether the packets passed: they would be denied only.
    pub allowed: bool,
    /// `INGRESS` or `EGRESS`: which end's policies deny it.
    pub traffic_direction: String,
    /// `src` or `dst`: whose node saw it.
    pub reporter: String,
    /// Of the first packet; absent where only the number of suppressed packets is told.
    #[serde(flatten)]
    pub connection: DeniedConnection,
    /// What denies it, or would.
    pub policy: DenyingPolicies,
    /// How many were logged.
    pub packets: u64,
    /// How many more the same policies have denied, or would have, since their last record, of this connection or of others.
    pub suppressed: u64,
    /// Whether there are suppressed ones, so that the packets are a sample.
    pub sampled: bool,
    /// The node's name.
    pub node: String,
    /// Where the policies are enforced: `node` or `pod`.
    pub point: String,
    /// Inode number of the network namespace whose rule it was.
    pub netns: u64,
    /// [`DENIAL_SCHEMA`].
    pub schema: String,
    /// What the rule had counted of which records tell, with this one and the others of its moment. Not said to others.
    #[serde(skip)]
    pub accounted: u64,
}

// === impl DenialRecord ===

impl DenialRecord {
    /// Whether its packets would be denied only.
    pub fn is_tried_out(&self) -> bool {
        self.kind == POLICY_WOULD_DENY
    }
}

/// One end of what was denied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DenialEnd {
    /// The tenant that has the pod's namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// Of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod_name: String,
    /// Of the pod, where it is one of the node that tells it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod_uid: String,
    /// Its address, as the rules saw it.
    pub ip: Option<IpAddr>,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The node of the pod, or the node itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// `pod`, `node` or `external`; `many` where ends are not told apart.
    pub kind: String,
    /// How many addresses are put together, about.
    #[serde(skip_serializing_if = "is_zero")]
    pub distinct: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Type and code of an ICMP message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeniedIcmp {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Its code.
    pub code: u8,
}

/// The policies that isolate a pod in a direction and do not allow something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DenyingPolicies {
    /// `NetworkPolicy`, `NetworkTenant` where the first of them is one, or `unknown` where the rule that logged it is not one that this agent knows.
    pub kind: String,
    /// The section of the first of them: `np`, or `tenant`.
    pub tier: String,
    /// Whether no rule allows it, as no rule of a NetworkPolicy denies; not where a tenant comes first.
    pub default: bool,
    /// What the log of the rule begins with, which tells it from others.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The rule that denies it, or would, where the policy gives its rules names, as tenants do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// All of them, as namespace/name.
    pub selecting: Vec<String>,
    /// The rule that comes nearest to allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest_miss: Option<NearRule>,
}

/// A rule that would allow something if one thing were otherwise, or two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NearRule {
    /// Its policy, as namespace/name.
    pub policy: String,
    /// Its place among the rules of that direction, from 0.
    pub rule: usize,
    /// What does not match: `port`, `peer`, or `peer and port`.
    pub missed: String,
}

impl DenialEnd {
    /// As [`Self::told`], without the port.
    pub fn told_without_port(&self) -> String {
        Self { port: None, ..self.clone() }.told()
    }

    /// For people: the pod, else the node, else the address; with the port.
    pub fn told(&self) -> String {
        let Self { namespace, pod_name, ip, port, node, kind, .. } = self;
        let name = match (kind.as_str(), ip) {
            ("pod", _) => format!("{namespace}/{pod_name}"),
            ("node", Some(ip)) => format!("node {node} ({ip})"),
            (_, Some(ip)) => ip.to_string(),
            (_, None) => "-".to_owned(),
        };
        match (port, ip) {
            (Some(port), Some(IpAddr::V6(ip))) if kind == "external" => format!("[{ip}]:{port}"),
            (Some(port), _) => format!("{name}:{port}"),
            (None, _) => name,
        }
    }
}
