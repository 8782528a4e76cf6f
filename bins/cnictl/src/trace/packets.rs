//! Steps put together to packets.

use std::time::{Duration, Instant};

use kernel::nft::trace::{self, Met, TraceStep, TraceVerdict, ends};

/// The interface lo is the first of each namespace.
pub(super) const LOOPBACK: u32 = 1;

/// The chains of the table that makes the trace which a packet meets first.
const BEGINNINGS: [&str; 2] = ["prerouting", "output"];

/// Packets of which more may be told.
#[derive(Debug, Default)]
pub(super) struct TracedPackets(Vec<OpenPacket>);

/// A packet, and when something was told of it last.
#[derive(Debug)]
struct OpenPacket {
    steps: Vec<TraceStep>,
    heard: Instant,
}

// === impl TracedPackets ===

impl TracedPackets {
    /// Adds a step to its packet.
    pub(super) fn take(&mut self, step: TraceStep) {
        // The kernel gives a number again, to the next packet of a connection for one.
        let begins = is_of_trace(&step) && step.header.is_some() && BEGINNINGS.contains(&&*step.chain);
        let continues = |packet: &&mut OpenPacket| {
            let has_number = packet.steps.last().is_some_and(|last| last.packet == step.packet);
            has_number && !begins || comes_again(&packet.steps, &step)
        };
        let heard = Instant::now();
        match self.0.iter_mut().rev().find(continues) {
            Some(packet) => {
                packet.heard = heard;
                packet.steps.push(step);
            }
            None => self.0.push(OpenPacket { steps: vec![step], heard }),
        }
    }

    /// Those of which nothing was told for so long, in the order in which they began; they are forgotten.
    pub(super) fn ended(&mut self, quiet: Duration) -> Vec<Vec<TraceStep>> {
        let ended = self.0.extract_if(.., |packet| packet.heard.elapsed() >= quiet);
        ended.map(|packet| packet.steps).collect()
    }
}

/// Whether it is the table that makes the trace which the packet met.
pub(super) fn is_of_trace(step: &TraceStep) -> bool {
    step.table.split_once(' ').is_some_and(|(_, name)| name == trace::TABLE)
}

/// Whether it is the packet that left by the loopback interface before: the kernel gives it another number when it comes in there. A rule may have
/// sent it there, so that only who sent it is the same.
fn comes_again(packet: &[TraceStep], step: &TraceStep) -> bool {
    let Some(header) = step.header.as_ref().filter(|_| step.from_interface == Some(LOOPBACK)) else {
        return false;
    };
    let is_in_already = packet.iter().any(|before| before.from_interface == Some(LOOPBACK));
    let before = packet.iter().rev().find_map(|before| before.header.as_ref());
    let is_sender = before.is_some_and(|before| {
        (before.protocol, ends(before).0.port(), &before.tcp_flags)
            == (header.protocol, ends(header).0.port(), &header.tcp_flags)
    });
    let is_there = packet.last().is_some_and(|last| last.verdict != TraceVerdict::Drop);
    !is_in_already && is_sender && is_there
}

/// A message of the kernel, about as `nft monitor trace` writes it.
pub(super) fn raw_line(step: &TraceStep) -> String {
    let TraceStep { packet, table, chain, met, verdict, .. } = step;
    let met = match met {
        Met::Rule(handle) => format!("rule handle {handle}"),
        Met::End => "end".to_owned(),
        Met::Policy => "policy".to_owned(),
    };
    let header = step.header.as_ref().map_or_else(String::new, |header| {
        let (from, to) = ends(header);
        format!(" {from} -> {to} protocol {}", header.protocol)
    });
    format!("trace id {packet:08x} {table} {chain} {met} (verdict {}){header}\n", word(verdict))
}

/// A verdict as nft writes it.
pub(super) fn word(verdict: &TraceVerdict) -> String {
    match verdict {
        TraceVerdict::Continue => "continue".to_owned(),
        TraceVerdict::Accept => "accept".to_owned(),
        TraceVerdict::Drop => "drop".to_owned(),
        TraceVerdict::Stolen => "stolen".to_owned(),
        TraceVerdict::Jump(chain) => format!("jump {chain}"),
        TraceVerdict::Goto(chain) => format!("goto {chain}"),
        TraceVerdict::Return => "return".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use kernel::nflog::LoggedHeader;

    use super::*;

    fn step(packet: u32, from_interface: Option<u32>, to: u8, port: u16) -> TraceStep {
        let header = LoggedHeader {
            source: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5)),
            destination: IpAddr::V4(Ipv4Addr::new(127, 0, 0, to)),
            protocol: 6,
            ports: Some((port, 80)),
            icmp: None,
            tcp_flags: None,
        };
        TraceStep {
            packet,
            table: "inet a".to_owned(),
            chain: "output".to_owned(),
            met: Met::Policy,
            verdict: TraceVerdict::Accept,
            header: Some(header),
            from_interface,
            to_interface: None,
            mark: 0,
        }
    }

    #[test]
    fn a_packet_that_comes_in_again_by_the_loopback_is_the_same() {
        let mut packets = TracedPackets::default();
        packets.take(step(7, None, 9, 4000));
        packets.take(step(8, Some(LOOPBACK), 1, 4000));
        packets.take(step(7, None, 9, 4000));
        // Of another sender, and the second packet of the first one.
        packets.take(step(9, Some(LOOPBACK), 1, 4001));
        packets.take(step(10, Some(LOOPBACK), 1, 4000));
        let ended = packets.ended(Duration::ZERO);
        let numbers: Vec<Vec<u32>> =
            ended.iter().map(|packet| packet.iter().map(|step| step.packet).collect()).collect();
        assert_eq!(numbers, [vec![7, 8], vec![7, 10], vec![9]]);
        assert!(packets.ended(Duration::ZERO).is_empty());
    }

    #[test]
    fn a_number_that_comes_again_is_another_packet() {
        let first =
            |packet| TraceStep { table: format!("inet {}", trace::TABLE), ..step(packet, None, 9, 4000) };
        let mut packets = TracedPackets::default();
        packets.take(first(7));
        packets.take(step(7, None, 9, 4000));
        packets.take(first(7));
        packets.take(step(7, None, 9, 4000));
        assert_eq!(packets.ended(Duration::ZERO).iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn a_packet_that_was_dropped_does_not_come_again() {
        let mut packets = TracedPackets::default();
        packets.take(TraceStep { verdict: TraceVerdict::Drop, ..step(7, None, 9, 4000) });
        packets.take(step(8, Some(LOOPBACK), 1, 4000));
        assert_eq!(packets.ended(Duration::ZERO).len(), 2);
    }
}
