//! A packet as it is asked about, of which most is assumed.

use std::net::IpAddr;

use anyhow::Result;
use ruleset::Protocol;
use ruleset::eval::{Owner, State};

use super::flow::{Direction, Flow, FlowEnd, Guess, parse_destination, parse_source};
use crate::output::Usage;

/// The user and group of an application whose manifest and caller say nothing: any that is not the proxy's gives the same answer.
const APPLICATION: u32 = 1000;

/// What is said of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FlowRequest {
    pub(super) direction: Direction,
    pub(super) protocol: Protocol,
    pub(super) to: FlowEnd,
    pub(super) from: Option<FlowEnd>,
    /// The interface that it leaves or comes in by.
    pub(super) interface: Option<String>,
    /// User and group of the sending process.
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mark: u32,
    pub(super) state: State,
    /// The pod's proxy listens.
    pub(super) listening: bool,
    /// A process of the node sends it.
    pub(super) from_node: bool,
}

impl FlowRequest {
    /// The first packet of a connection, of which only that is known.
    fn new(direction: Direction, to: FlowEnd) -> Self {
        Self {
            direction,
            protocol: Protocol::Tcp,
            to,
            from: None,
            interface: None,
            uid: None,
            gid: None,
            mark: 0,
            state: State::New,
            listening: true,
            from_node: false,
        }
    }

    /// The packet, wholly described, for a pod with these addresses.
    ///
    /// # Errors
    /// What is said does not fit together.
    pub(super) fn flow(&self, pod_ips: &[IpAddr]) -> Result<Flow> {
        let Self { direction, protocol, to, from, interface, mark, state, listening, from_node, .. } = self;
        if *direction == Direction::Out && to.ip.is_none() {
            let text = "--to of a packet that the pod sends needs an address, such as 10.0.0.5:443";
            return Err(Usage(text.to_owned()).into());
        }
        let mut assumed = Vec::new();
        let owner = (*direction == Direction::Out).then(|| self.owner(&mut assumed));
        let guess =
            Guess { direction: *direction, to: *to, from: *from, pod_ips, interface: interface.as_deref() };
        let (source, destination, interface) = guess.endpoints(&mut assumed).map_err(Usage)?;
        Ok(Flow {
            direction: *direction,
            protocol: *protocol,
            source,
            destination,
            interface,
            owner,
            state: *state,
            listening: *listening,
            mark: *mark,
            from_node: *from_node,
            assumed,
        })
    }

    fn owner(&self, assumed: &mut Vec<String>) -> Owner {
        let uid = self.uid.unwrap_or(APPLICATION);
        let gid = self.gid.unwrap_or(uid);
        if self.uid.is_none() && self.gid.is_none() {
            assumed.push(format!("the application sends it, as user and group {APPLICATION} (--uid, --gid)"));
        }
        Owner { uid, gid }
    }
}

/// `out:203.0.113.9:443`, `in::8080`, each with `,protocol=udp` and so on.
pub(crate) fn parse_packet(text: &str) -> Result<FlowRequest, String> {
    let (direction, rest) = match text.split_once(':') {
        Some(("out", rest)) => (Direction::Out, rest),
        Some(("in", rest)) => (Direction::In, rest),
        _ => return Err("write out:IP:PORT or in:[IP]:PORT, such as out:203.0.113.9:443,uid=1000".to_owned()),
    };
    let mut parts = rest.split(',');
    let to = parse_destination(parts.next().unwrap_or_default())?;
    if direction == Direction::Out && to.ip.is_none() {
        return Err("a packet that the pod sends needs an address, such as out:203.0.113.9:443".to_owned());
    }
    let mut request = FlowRequest::new(direction, to);
    for part in parts {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        match name {
            "uid" | "gid" if direction == Direction::In => {
                return Err(format!(
                    "{name} is of the process that sends it, which is not known of one that comes in"
                ));
            }
            "uid" => request.uid = Some(parse_id(name, value)?),
            "gid" => request.gid = Some(parse_id(name, value)?),
            "from" => request.from = Some(parse_source(value)?),
            "mark" => request.mark = parse_mark(value)?,
            "protocol" => {
                request.protocol = match value {
                    "tcp" => Protocol::Tcp,
                    "udp" => Protocol::Udp,
                    _ => return Err(format!("protocol={value}: choose tcp or udp")),
                };
            }
            _ => return Err(format!("{name:?}: choose uid, gid, protocol, from, mark")),
        }
    }
    Ok(request)
}

fn parse_id(name: &str, value: &str) -> Result<u32, String> {
    value.parse().map_err(|_| format!("{name}={value}: not a number of a user or group"))
}

/// Decimal, or hexadecimal after `0x`.
pub(super) fn parse_mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("{text:?} is not a mark, a number of 32 bits such as 0x539"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_with_what_is_said_of_it_and_the_rest_is_assumed() {
        let pod: IpAddr = "10.9.0.1".parse().unwrap();
        let flow = |text: &str| parse_packet(text).unwrap().flow(&[pod]).unwrap();
        let plain = flow("out:203.0.113.9:443");
        assert_eq!((plain.destination, plain.source.ip()), ("203.0.113.9:443".parse().unwrap(), pod));
        assert_eq!(plain.owner, Some(Owner { uid: APPLICATION, gid: APPLICATION }));
        let told = flow("out:[2001:db8::9]:53,uid=0,gid=7,protocol=udp,mark=0x539");
        assert_eq!(
            (told.protocol, told.mark, told.owner),
            (Protocol::Udp, 0x539, Some(Owner { uid: 0, gid: 7 }))
        );
        let inbound = flow("in::8080,from=10.0.0.5:1234");
        assert_eq!((inbound.destination, inbound.owner), ((pod, 8080).into(), None));
        assert_eq!(inbound.source, "10.0.0.5:1234".parse().unwrap());
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        for text in [
            "",
            "203.0.113.9:443",
            "out:203.0.113.9",
            "out::443",
            "out:203.0.113.9:443,uid=x",
            "out:203.0.113.9:443,uid",
            "in::80,uid=1",
            "in::80,protocol=sctp",
            "in::80,colour=red",
            "in::80,",
            "in::80,mark=-1",
            "in::99999",
        ] {
            assert!(parse_packet(text).is_err(), "{text}");
        }
    }
}
