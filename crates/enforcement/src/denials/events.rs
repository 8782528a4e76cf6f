//! Which denials become Events: one for each pod, peer and port in a while, and few in all.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rundir::denials::DenialRecord;

/// For how long the next Event about the same waits.
const PAUSE: Duration = Duration::from_secs(600);
/// Events of a node in a minute.
const MOST_IN_A_MINUTE: usize = 5;
const MINUTE: Duration = Duration::from_secs(60);
/// Pods, peers and ports that are told apart. With one more those are forgotten whose pause is over, and nothing more is told if there is none.
const MOST_SUBJECTS: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct DenialEvents {
    subjects: HashMap<Subject, SubjectTally>,
    told: Vec<Instant>,
}

/// Pod, direction, peer, protocol and port.
type Subject = (String, String, String, String, Option<u16>);

#[derive(Debug, Default)]
struct SubjectTally {
    told: Option<Instant>,
    /// Packets since then.
    packets: u64,
}

/// What is to be written about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenialEvent {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether a tenant denies it, and the other end is a pod that is not its own.
    pub is_cross_tenant: bool,
    /// For people.
    pub message: String,
}

// === impl DenialEvents ===

impl DenialEvents {
    /// What is to be written of a record, if anything. Who is outside of the cluster and tries a pod's ports makes no Events, nor do policies that are
    /// only tried out: nothing is wrong with the pod.
    pub fn take(&mut self, record: &DenialRecord, now: Instant) -> Option<DenialEvent> {
        let (source, destination) =
            (record.connection.source.as_ref()?, record.connection.destination.as_ref()?);
        let is_egress = record.traffic_direction == "EGRESS";
        let (pod, peer) = if is_egress { (source, destination) } else { (destination, source) };
        if record.is_tried_out() || pod.kind != "pod" || (!is_egress && peer.kind == "external") {
            return None;
        }
        let subject = (
            format!("{}/{}", pod.namespace, pod.pod_name),
            record.traffic_direction.clone(),
            peer.told_without_port(),
            record.connection.protocol.clone(),
            destination.port,
        );
        if self.subjects.len() >= MOST_SUBJECTS && !self.subjects.contains_key(&subject) {
            self.subjects.retain(|_, tally| tally.told.is_some_and(|told| now - told < PAUSE));
            if self.subjects.len() >= MOST_SUBJECTS {
                return None;
            }
        }
        self.told.retain(|told| now - *told < MINUTE);
        let has_room = self.told.len() < MOST_IN_A_MINUTE;
        let message = message(record, &subject);
        let tally = self.subjects.entry(subject).or_default();
        tally.packets += record.packets;
        if !has_room || tally.told.is_some_and(|told| now - told < PAUSE) {
            return None;
        }
        let packets = std::mem::take(&mut tally.packets);
        tally.told = Some(now);
        self.told.push(now);
        let times = if packets == 1 { "1 packet".to_owned() } else { format!("{packets} packets") };
        Some(DenialEvent {
            namespace: pod.namespace.clone(),
            name: pod.pod_name.clone(),
            is_cross_tenant: by_tenant(record) && peer.kind == "pod" && pod.tenant != peer.tenant,
            message: format!("{message}; {times}"),
        })
    }
}

fn by_tenant(record: &DenialRecord) -> bool {
    record.policy.kind == "NetworkTenant"
}

fn message(record: &DenialRecord, (_, _, peer, protocol, port): &Subject) -> String {
    let word = if record.traffic_direction == "EGRESS" { "to" } else { "from" };
    let on = port.map(|port| format!(" on port {port}")).unwrap_or_default();
    let policies = record.policy.selecting.join(", ");
    let near =
        record.policy.nearest_miss.as_ref().map(|near| {
            format!("; rule {} of {} does not match by its {}", near.rule, near.policy, near.missed)
        });
    let near = near.unwrap_or_default();
    let who = if by_tenant(record) { "Tenants" } else { "NetworkPolicies" };
    format!(
        "{who} deny {protocol} {word} {peer}{on}: no {} rule of {policies} allows it{near}",
        record.traffic_direction.to_ascii_lowercase()
    )
}
