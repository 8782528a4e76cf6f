//! What a line says: packets that were denied, what is missing, and where writing began and ended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rundir::denials::{DenialEnd, DenialRecord, DeniedConnection, DenyingPolicies};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use telemetry::time_text;

/// `schema` of an event. Within it members are only added.
pub const EVENT_SCHEMA: &str = "istio-cni.audit/v1";
/// `type` where packets are missing in the lines before.
pub const AUDIT_GAP: &str = "audit_gap";
/// `type` of the first line of an agent.
pub const AUDIT_START: &str = "audit_start";
/// `type` of the last line of an agent that was told to end.
pub const AUDIT_STOP: &str = "audit_stop";

/// The rule of policies that denied something, in one namespace. Its counter says how much that was.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleKey {
    /// Inode number of the network namespace.
    pub netns: u64,
    /// What its log begins with.
    pub id: String,
}

/// A line, without its place in the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditEvent {
    /// When the first packet was heard of, or when the line was made; as RFC 3339 has it.
    pub time: String,
    /// When the last was.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub end_time: String,
    /// Another one in each line.
    pub uuid: String,
    /// `policy_violation`, `policy_would_deny`, [`AUDIT_GAP`], [`AUDIT_START`] or [`AUDIT_STOP`].
    #[serde(rename = "type")]
    pub kind: String,
    /// `DROPPED`, `REJECTED` or `AUDIT`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub verdict: String,
    /// Whether the packets passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<bool>,
    /// `INGRESS` or `EGRESS`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub traffic_direction: String,
    /// `src` or `dst`: whose node saw it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reporter: String,
    /// Of the first packet.
    #[serde(flatten)]
    pub connection: DeniedConnection,
    /// What denies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<DenyingPolicies>,
    /// How many packets the line is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// How many of them were counted by the rule and not logged, so that they are shared out between the ends that were.
    #[serde(skip_serializing_if = "is_zero")]
    pub limited: u64,
    /// Whether there are limited ones.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sampled: bool,
    /// Packets of which no other line tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Lines that found no room before the disk.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost_events: u64,
    /// Where they were lost: `kernel`, `agent`, `disk`.
    #[serde(rename = "where", skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// The agent's version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Which start of the machine it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// How the file was found: `new`, `stop`, `unclean`, `torn`, `broken`, `truncated`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub after: String,
    /// The number of the last line that an agent before wrote.
    #[serde(skip_serializing_if = "is_zero")]
    pub last_seq: u64,
    /// Options of this agent's audit.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// The node's name.
    pub node: String,
    /// `node` or `pod`: where the policies are enforced.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub point: String,
    /// Inode number of the network namespace with the rule.
    #[serde(skip_serializing_if = "is_zero")]
    pub netns: u64,
    /// Its number in the chain; only where a line is read.
    #[serde(skip_serializing)]
    pub seq: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How many bits of external addresses stay, of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressMask {
    /// Of IPv4.
    pub v4: u8,
    /// Of IPv6.
    pub v6: u8,
}

// === impl AddressMask ===

impl AddressMask {
    /// From `/24,/48`.
    pub fn parse(text: &str) -> Option<Self> {
        let (v4, v6) = text.split_once(',')?;
        let bits = |text: &str| text.trim().strip_prefix('/')?.parse::<u8>().ok();
        let mask = Self { v4: bits(v4)?, v6: bits(v6)? };
        (mask.v4 <= 32 && mask.v6 <= 128).then_some(mask)
    }

    fn apply(self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(ip) => IpAddr::V4(
                (u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(self.v4)).unwrap_or(0)).into(),
            ),
            IpAddr::V6(ip) => IpAddr::V6(
                (u128::from(ip) & u128::MAX.checked_shl(128 - u32::from(self.v6)).unwrap_or(0)).into(),
            ),
        }
    }
}

/// Bytes of names of policies in a line. Who may write policies of a namespace decides how many and how long they are.
const MOST_NAMES: usize = 2048;

/// The policies without the names that are too many for a line; how many these are is the last.
fn told_policies(policies: &DenyingPolicies) -> DenyingPolicies {
    let mut told = policies.clone();
    let mut bytes = 0;
    let fitting = |name: &&String| {
        bytes += name.len();
        bytes <= MOST_NAMES
    };
    let count = told.selecting.iter().take_while(fitting).count();
    let more = told.selecting.len() - count;
    if more > 0 {
        told.selecting.truncate(count);
        told.selecting.push(format!("and {more} more"));
    }
    told
}

// === impl AuditEvent ===

impl AuditEvent {
    /// Of a record: all packets that it tells of.
    pub fn of(record: &DenialRecord, mask: Option<AddressMask>) -> Self {
        let masked = |end: &Option<DenialEnd>| {
            let mut end = end.clone()?;
            if let Some(mask) = mask.filter(|_| end.kind == "external") {
                end.ip = end.ip.map(|ip| mask.apply(ip));
            }
            Some(end)
        };
        Self {
            time: record.time.clone(),
            end_time: record.end_time.clone(),
            uuid: new_uuid(),
            kind: record.kind.clone(),
            verdict: record.verdict.clone(),
            allowed: Some(record.allowed),
            traffic_direction: record.traffic_direction.clone(),
            reporter: record.reporter.clone(),
            connection: DeniedConnection {
                source: masked(&record.connection.source),
                destination: masked(&record.connection.destination),
                ..record.connection.clone()
            },
            policy: Some(told_policies(&record.policy)),
            packets: Some(record.packets + record.suppressed),
            limited: record.suppressed,
            sampled: record.suppressed > 0,
            node: record.node.clone(),
            point: record.point.clone(),
            netns: record.netns,
            seq: record.seq,
            ..Self::default()
        }
    }

    /// Of no packets.
    pub fn plain(kind: &str, node: &str) -> Self {
        let (time, uuid) = (time_text(SystemTime::now()), new_uuid());
        Self { time, uuid, kind: kind.to_owned(), node: node.to_owned(), ..Self::default() }
    }

    /// So many packets of a rule are missing.
    pub fn gap(node: &str, rule: &RuleKey, lost: u64, place: &str) -> Self {
        let policy = (!rule.id.is_empty())
            .then(|| DenyingPolicies { id: rule.id.clone(), ..DenyingPolicies::default() });
        let place = place.to_owned();
        Self { policy, lost: Some(lost), place, netns: rule.netns, ..Self::plain(AUDIT_GAP, node) }
    }

    /// From a line.
    pub fn read(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// As it is written, without its place in the chain.
    pub fn body(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The rule whose counter has the packets, and how many of them the line tells.
    pub fn accounted(&self) -> Option<(RuleKey, u64)> {
        let id = self.policy.as_ref().map(|policy| policy.id.clone()).filter(|id| !id.is_empty())?;
        Some((RuleKey { netns: self.netns, id }, self.packets.or(self.lost)?))
    }
}

/// Random bits of this process and a number, as a UUID of version 4.
pub(crate) fn new_uuid() -> String {
    static SEED: OnceLock<[u8; 32]> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let seed = SEED.get_or_init(|| {
        let mut seed = [0; 32];
        let read =
            |seed: &mut [u8]| std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, seed);
        if read(&mut seed).is_err() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            seed[..16].copy_from_slice(&now.as_nanos().to_le_bytes());
            seed[16..20].copy_from_slice(&std::process::id().to_le_bytes());
        }
        seed
    });
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let hash = Sha256::new().chain_update(seed).chain_update(number.to_le_bytes()).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::Path;

    use rundir::denials::{DeniedIcmp, NearRule};
    use serde_json::Value;

    use super::*;
    use crate::ChainLink;

    #[test]
    fn however_many_policies_select_a_pod_their_line_is_one_that_a_file_takes() {
        let names: Vec<String> =
            (0..5000).map(|number| format!("{}/{number:0253}", "n".repeat(63))).collect();
        let policy = DenyingPolicies { selecting: names.clone(), ..DenyingPolicies::default() };
        let record = DenialRecord { policy, ..DenialRecord::default() };
        let event = AuditEvent::of(&record, None);
        let body = event.body();
        assert!(body.len() < 4096, "{}", body.len());
        let told = event.policy.unwrap().selecting;
        assert_eq!(
            (told.len(), told[0].clone(), told[6].clone()),
            (7, names[0].clone(), "and 4994 more".to_owned())
        );
    }

    /// With every member that a line may have.
    fn full() -> AuditEvent {
        let text = |text: &str| text.to_owned();
        let end = DenialEnd {
            tenant: "red".to_owned(),
            pod_uid: "1".to_owned(),
            namespace: text("shop"),
            pod_name: text("web"),
            ip: Some([10, 0, 0, 1].into()),
            port: Some(80),
            node: text("n1"),
            kind: text("pod"),
            distinct: 2,
        };
        let near = NearRule { policy: text("shop/closed"), rule: 0, missed: text("port") };
        let policy = DenyingPolicies {
            kind: text("NetworkPolicy"),
            tier: text("np"),
            id: text("ic1:1"),
            selecting: vec![text("shop/closed")],
            nearest_miss: Some(near),
            ..DenyingPolicies::default()
        };
        AuditEvent {
            end_time: text("2026-11-30T00:00:00.000000Z"),
            verdict: text("DROPPED"),
            allowed: Some(false),
            traffic_direction: text("INGRESS"),
            reporter: text("dst"),
            connection: DeniedConnection {
                source: Some(end.clone()),
                destination: Some(end),
                protocol: text("TCP"),
                icmp: Some(DeniedIcmp { kind: 3, code: 1 }),
                tcp_flags: text("SYN"),
            },
            policy: Some(policy),
            packets: Some(3),
            limited: 1,
            sampled: true,
            lost: Some(1),
            lost_events: 1,
            place: text("disk"),
            version: text("1"),
            boot_id: text("b"),
            after: text("stop"),
            last_seq: 1,
            options: BTreeMap::from([(text("AUDIT_LOG"), text("-"))]),
            point: text("node"),
            netns: 1,
            ..AuditEvent::plain("policy_violation", "n1")
        }
    }

    /// Where the names of a text's members begin, in the order of the schema.
    fn assert_described(schema: &Value, part: &Value, value: &Value, text: &str) {
        let part = match part["$ref"].as_str() {
            Some(_) => &schema["$defs"]["end"],
            None => part,
        };
        for (name, value) in value.as_object().into_iter().flatten() {
            let described = part["properties"].get(name).or(part.get("additionalProperties"));
            let described = described.unwrap_or_else(|| panic!("{name} is not described: {text}"));
            if let Some(words) = described["enum"].as_array() {
                assert!(words.contains(value), "{name}: {value}");
            }
            assert_described(schema, described, value, text);
        }
    }

    #[test]
    fn the_schema_that_is_shipped_describes_every_member_in_its_order() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/audit-v1.json");
        let schema = std::fs::read_to_string(path).unwrap();
        let schema: Value = serde_json::from_str(&schema).unwrap();
        let mut link = ChainLink::start();
        let gap = AuditEvent::gap("n1", &RuleKey { netns: 1, id: "ic1:1".to_owned() }, 3, "agent");
        for event in [full(), gap, AuditEvent::plain(AUDIT_START, "n1"), AuditEvent::plain(AUDIT_STOP, "n1")]
        {
            let line = link.seal(&event.body(), EVENT_SCHEMA).unwrap();
            assert_described(&schema, &schema, &serde_json::from_str(&line).unwrap(), &line);
            for name in schema["required"].as_array().unwrap() {
                assert!(line.contains(&format!("{name}:")), "{name} is missing: {line}");
            }
            let read = AuditEvent::read(&line).unwrap();
            assert_eq!(AuditEvent { seq: 0, ..read }, event);
        }
        let line = full().body();
        let known = |name: &str| line.find(&format!("\"{name}\":")).map(|at| (at, name.to_owned()));
        let order = [
            "time",
            "end_time",
            "uuid",
            "type",
            "verdict",
            "allowed",
            "traffic_direction",
            "reporter",
            "source",
        ];
        let more = ["destination", "protocol", "icmp", "tcp_flags", "policy", "packets", "options", "netns"];
        let places: Vec<(usize, String)> =
            order.iter().chain(&more).map(|name| known(name).unwrap()).collect();
        assert!(places.is_sorted(), "{places:?}");
    }
}
