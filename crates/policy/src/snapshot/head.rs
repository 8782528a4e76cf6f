//! The head: whom policies select, and where the own node is.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::net::IpAddr;

use facts::LabelSet;
use facts::networkpolicy::Isolation;

use super::words::{SnapshotWords, SnapshotWriter};
use super::{MAGIC, NAMESPACE, NODE, POLICY, SEEN, SnapshotError, terms};
use crate::terms::{DirectionTerms, PodTerm, PolicyName, PolicyTerms, Section, TrafficDirection};

/// A pod that policies may select.
pub struct SubjectPod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels; absent where they are not known: then a policy of its namespace counts as if it selected the pod.
    pub labels: Option<&'a BTreeMap<String, String>>,
}

/// What a snapshot says of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodIsolation {
    /// The directions in which policies isolate it.
    pub isolation: Isolation,
    /// Addresses of its node.
    pub node: Vec<IpAddr>,
}

/// Looks which policies of a snapshot select a pod. Reads no further than the head, and takes apart only what may be about the pod.
///
/// # Errors
/// What is read is not the head of a snapshot of this version.
pub fn find_isolation(snapshot: impl BufRead, pod: &SubjectPod<'_>) -> Result<PodIsolation, SnapshotError> {
    let mut lines = snapshot.lines().map(|line| line.map_err(|_| SnapshotError::Unreadable));
    if lines.next().transpose()?.as_deref() != Some(MAGIC) {
        return Err(SnapshotError::Version);
    }
    let (mut found, mut labels, mut number) = (PodIsolation::default(), None, 1);
    for line in lines {
        let line = line?;
        number += 1;
        let mut words = SnapshotWords::new(&line);
        let read = match words.raw() {
            Some(SEEN) => return Ok(found),
            Some(NODE) => read_node(&mut words).map(|addresses| found.node.extend(addresses)),
            Some(NAMESPACE) => words.text().and_then(|name| {
                if *name == *pod.namespace {
                    labels = Some(read_labels(&mut words)?);
                }
                Some(())
            }),
            Some(POLICY) => isolated_by(&mut words, pod, labels.as_ref())
                .map(|isolation| found.isolation = found.isolation.or(isolation)),
            _ => None,
        };
        read.ok_or(SnapshotError::Line(number))?;
    }
    Err(SnapshotError::Cut(number))
}

/// What the policy of a line isolates of a pod.
fn isolated_by(
    words: &mut SnapshotWords<'_>,
    pod: &SubjectPod<'_>,
    namespace: Option<&LabelSet>,
) -> Option<Isolation> {
    let name = read_name(words)?;
    if name.only_namespace().is_some_and(|only| only != pod.namespace) {
        return Some(Isolation::default());
    }
    let policy = read_named(name, words)?;
    let label_of_namespace = namespace.map(|labels| |key: &str| labels.get(key));
    let selects = match pod.labels {
        Some(labels) => {
            let label = |key: &str| labels.get(key).map(String::as_str);
            policy.subjects.selects(pod.namespace, label_of_namespace, label)
        }
        None => {
            let anywhere = PodTerm { labels: facts::Selector::default(), ..policy.subjects };
            anywhere.selects(pod.namespace, label_of_namespace, |_| None)
        }
    };
    // A namespace of which nothing was known may have come to any tenant.
    let selects = selects || (namespace.is_none() && policy.name.section == Section::Tenant);
    let guards = |terms: &DirectionTerms| selects && terms.guards(&policy.name);
    Some(Isolation { ingress: guards(&policy.ingress), egress: guards(&policy.egress) })
}

/// Name, directions and subjects.
pub(super) fn write(policy: &PolicyTerms, out: &mut SnapshotWriter) {
    out.word(match policy.name.section {
        Section::Admin => "admin",
        Section::Tenant => "tenant",
        Section::NetworkPolicy => "np",
        Section::Baseline => "baseline",
    });
    out.word(&policy.name.namespace);
    out.word(&policy.name.name);
    for direction in [TrafficDirection::Ingress, TrafficDirection::Egress] {
        let DirectionTerms { applies, is_tried_out, .. } = policy.direction(direction);
        out.word(match (applies, is_tried_out) {
            (false, _) => "no",
            (true, false) => "yes",
            (true, true) => "try",
        });
    }
    terms::write_pods(&policy.subjects, out);
}

/// Such a policy, without its rules.
pub(super) fn read(words: &mut SnapshotWords<'_>) -> Option<PolicyTerms> {
    let name = read_name(words)?;
    read_named(name, words)
}

fn read_name(words: &mut SnapshotWords<'_>) -> Option<PolicyName> {
    let section = match words.raw()? {
        "admin" => Section::Admin,
        "tenant" => Section::Tenant,
        "np" => Section::NetworkPolicy,
        "baseline" => Section::Baseline,
        _ => return None,
    };
    Some(PolicyName { section, namespace: words.text()?, name: words.text()? })
}

fn read_named(name: PolicyName, words: &mut SnapshotWords<'_>) -> Option<PolicyTerms> {
    let mut direction = || {
        let (applies, is_tried_out) = match words.raw()? {
            "yes" => (true, false),
            "try" => (true, true),
            "no" => (false, false),
            _ => return None,
        };
        Some(DirectionTerms { applies, is_tried_out, ..DirectionTerms::default() })
    };
    let (ingress, egress) = (direction()?, direction()?);
    Some(PolicyTerms { name, subjects: terms::read_pods(words)?, ingress, egress })
}

pub(super) fn read_node(words: &mut SnapshotWords<'_>) -> Option<Vec<IpAddr>> {
    let mut found = Vec::new();
    while !words.is_over() {
        found.push(words.number()?);
    }
    Some(found)
}

pub(super) fn read_namespace(words: &mut SnapshotWords<'_>) -> Option<(Box<str>, LabelSet)> {
    Some((words.text()?, read_labels(words)?))
}

pub(super) fn write_labels(labels: &LabelSet, out: &mut SnapshotWriter) {
    out.show(&labels.len());
    labels.iter().for_each(|(key, value)| {
        out.word(key);
        out.word(value);
    });
}

pub(super) fn read_labels(words: &mut SnapshotWords<'_>) -> Option<LabelSet> {
    let pairs = words.list(|words| Some((words.text()?, words.text()?)))?;
    Some(pairs.iter().map(|(key, value)| (&**key, &**value)).collect())
}
