//! Pods as words.

use facts::Peer;
use facts::networkpolicy::PolicyProtocol;
use facts::peer::{NamedPort, Phase};

use super::head::{read_labels, write_labels};
use super::words::{SnapshotWords, SnapshotWriter};
use crate::plain::PlainPod;

const PHASES: [(Phase, &str); 5] = [
    (Phase::Pending, "pending"),
    (Phase::Running, "running"),
    (Phase::Succeeded, "succeeded"),
    (Phase::Failed, "failed"),
    (Phase::Unknown, "unknown"),
];

/// What is said of a pod by a letter: whether it is enrolled, shares its node's network, is being deleted.
const FLAGS: [char; 3] = ['e', 'h', 'd'];

pub(super) fn write(pod: &PlainPod, out: &mut SnapshotWriter) {
    let PlainPod { namespace, name, is_enrolled, facts } = pod;
    out.word(namespace);
    out.word(name);
    out.word(&facts.node);
    out.word(PHASES.iter().find(|(phase, _)| *phase == facts.phase).map_or("unknown", |(_, word)| word));
    let flags = FLAGS.into_iter().zip([*is_enrolled, facts.host_network, facts.is_deleting]);
    out.word(&flags.filter_map(|(letter, is_so)| is_so.then_some(letter)).collect::<String>());
    out.show(&facts.created);
    out.list(&facts.addresses, |address, out| out.show(address));
    out.list(&facts.ports, |port, out| {
        out.word(&port.name);
        out.word(port.protocol.name());
        out.show(&port.number);
    });
    write_labels(&facts.labels, out);
}

pub(super) fn read(words: &mut SnapshotWords<'_>) -> Option<PlainPod> {
    let (namespace, name, node) = (words.text()?, words.text()?, words.text()?);
    let word = words.raw()?;
    let (phase, _) = PHASES.into_iter().find(|(_, known)| *known == word)?;
    let flags = words.text()?;
    let [is_enrolled, host_network, is_deleting] = FLAGS.map(|letter| flags.contains(letter));
    let created = words.number()?;
    let addresses = words.list(SnapshotWords::number)?.into();
    let ports = words.list(|words| {
        let name = words.text()?;
        let protocol = PolicyProtocol::parse(Some(words.raw()?)).ok()?;
        Some(NamedPort { name, protocol, number: words.number()? })
    })?;
    let (ports, labels) = (ports.into(), read_labels(words)?);
    let facts = Peer { labels, addresses, ports, phase, host_network, is_deleting, created, node };
    Some(PlainPod { namespace, name, is_enrolled, facts })
}
