//! The flow that is asked about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ruleset::Protocol;
use ruleset::eval::{Owner, State};

/// The source port where none is given: ephemeral, so that no rule looks at it.
const SOURCE_PORT: u16 = 40000;

/// A pod's address where none is given: of a range that private networks use and no rule of ours names.
const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 10);
const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0x10);
/// Somebody elsewhere: addresses for documentation (RFC 5737, RFC 3849).
const PEER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

/// Which way the packet goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    In,
    Out,
}

/// One end as it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowEnd {
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: Option<u16>,
}

/// One packet, completely described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) direction: Direction,
    pub(super) protocol: Protocol,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// The one that it leaves or comes in by.
    pub(super) interface: String,
    /// Of the sending socket; a packet from outside has none.
    pub(super) owner: Option<Owner>,
    pub(super) state: State,
    /// Whether the pod's proxy listens.
    pub(super) listening: bool,
    pub(super) mark: u32,
    /// A process of the node sends it.
    pub(super) from_node: bool,
    /// Values that were not given and are assumed.
    pub(super) assumed: Vec<String>,
}

/// What is known of the two ends.
pub(super) struct Guess<'a> {
    pub(super) direction: Direction,
    pub(super) to: FlowEnd,
    pub(super) from: Option<FlowEnd>,
    pub(super) pod_ips: &'a [IpAddr],
    pub(super) interface: Option<&'a str>,
}

/// `IP:PORT`, `[IP]:PORT` or `:PORT`.
pub(super) fn parse_destination(text: &str) -> Result<FlowEnd, String> {
    if let Some(port) = text.strip_prefix(':') {
        return Ok(FlowEnd { ip: None, port: Some(parse_port(port)?) });
    }
    match parse_source(text)? {
        FlowEnd { port: None, .. } => {
            Err("the port is missing; write 10.0.0.5:443 or [2001:db8::5]:443".to_owned())
        }
        endpoint => Ok(endpoint),
    }
}

/// `IP:PORT`, `[IP]:PORT` or `IP`.
pub(super) fn parse_source(text: &str) -> Result<FlowEnd, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(FlowEnd { ip: Some(address.ip()), port: Some(address.port()) });
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(FlowEnd { ip: Some(ip), port: None });
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
    {
        parse_port(port)?;
    }
    Err("no IP address and port; write 10.0.0.5:443 or [2001:db8::5]:443 (names are not resolved)".to_owned())
}

/// `IP:PORT`, `[IP]:PORT`, `IP` or `:PORT`.
pub(crate) fn parse_end(text: &str) -> Result<FlowEnd, String> {
    if text.starts_with(':') { parse_destination(text) } else { parse_source(text) }
}

fn parse_port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text:?} is not a port from 0 to 65535"))
}

impl Guess<'_> {
    /// Source, destination and interface.
    ///
    /// # Errors
    /// The two ends are of different families.
    pub(super) fn endpoints(
        &self,
        assumed: &mut Vec<String>,
    ) -> Result<(SocketAddr, SocketAddr, String), String> {
        let from = self.from.and_then(|from| from.ip);
        let v6 = self.to.ip.or(from).or(self.pod_ips.first().copied()).is_some_and(|ip| ip.is_ipv6());
        let own = self.own_address(v6);
        let destination = self.to.ip.unwrap_or(own);
        if self.to.ip.is_none() && self.pod_ips.is_empty() {
            assumed.push(format!("the pod's address is {own} (--pod-ip)"));
        }
        let interface = self.interface.map_or_else(|| self.guess_interface(destination), str::to_owned);
        let source = from.unwrap_or(match self.direction {
            Direction::Out if destination.is_loopback() => destination,
            Direction::Out => own,
            Direction::In if v6 => PEER_V6.into(),
            Direction::In => PEER_V4.into(),
        });
        if from.is_none() && !(self.direction == Direction::Out && destination.is_loopback()) {
            assumed.push(format!("it comes from {source} (--from)"));
        }
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(format!("--from {source} and --to {destination} are of different families"));
        }
        let source_port = self.from.and_then(|from| from.port).unwrap_or(SOURCE_PORT);
        let destination_port = self.to.port.unwrap_or_default();
        Ok((SocketAddr::new(source, source_port), SocketAddr::new(destination, destination_port), interface))
    }

    fn own_address(&self, v6: bool) -> IpAddr {
        let given = self.pod_ips.iter().copied().find(|ip| ip.is_ipv6() == v6);
        given.unwrap_or(if v6 { POD_V6.into() } else { POD_V4.into() })
    }

    fn guess_interface(&self, destination: IpAddr) -> String {
        let inside = destination.is_loopback() || self.pod_ips.contains(&destination);
        let lo = self.direction == Direction::Out && inside;
        if lo { "lo" } else { "eth0" }.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_in_every_form() {
        let end = |ip: &str, port| FlowEnd { ip: ip.parse().ok(), port };
        assert_eq!(parse_destination("10.0.0.5:443"), Ok(end("10.0.0.5", Some(443))));
        assert_eq!(parse_destination("[fd00::1]:53"), Ok(end("fd00::1", Some(53))));
        assert_eq!(parse_destination(":8080"), Ok(end("", Some(8080))));
        assert_eq!(parse_source("10.0.0.5"), Ok(end("10.0.0.5", None)));
        assert_eq!(parse_source("fd00::1"), Ok(end("fd00::1", None)));
        assert_eq!(parse_source("[fd00::1]"), Ok(end("fd00::1", None)));
    }

    #[test]
    fn what_is_no_end_is_refused_with_an_example() {
        for (text, part) in [
            ("10.0.0.5", "the port is missing"),
            ("example.com:443", "names are not resolved"),
            ("10.0.0.5:70000", "\"70000\" is not a port"),
            (":x", "\"x\" is not a port"),
            ("", "no IP address"),
        ] {
            let error = parse_destination(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn guess(direction: Direction, to: &str, from: Option<&str>, pod_ips: &[&str]) -> Result<String, String> {
        let pod_ips: Vec<IpAddr> = pod_ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let guess = Guess {
            direction,
            to: parse_destination(to).unwrap(),
            from: from.map(|from| parse_source(from).unwrap()),
            pod_ips: &pod_ips,
            interface: None,
        };
        guess.endpoints(&mut Vec::new()).map(|(from, to, interface)| format!("{from} {to} {interface}"))
    }

    #[test]
    fn what_is_missing_is_assumed() {
        use Direction::{In, Out};
        assert_eq!(guess(Out, "1.1.1.1:80", None, &[]).unwrap(), "10.244.0.10:40000 1.1.1.1:80 eth0");
        assert_eq!(guess(Out, "127.0.0.1:80", None, &[]).unwrap(), "127.0.0.1:40000 127.0.0.1:80 lo");
        assert_eq!(guess(Out, "10.1.0.2:80", None, &["10.1.0.2"]).unwrap(), "10.1.0.2:40000 10.1.0.2:80 lo");
        assert_eq!(guess(In, ":80", None, &["10.1.0.2"]).unwrap(), "192.0.2.7:40000 10.1.0.2:80 eth0");
        assert_eq!(
            guess(In, ":80", Some("fd00::9"), &["10.1.0.2", "fd00::2"]).unwrap(),
            "[fd00::9]:40000 [fd00::2]:80 eth0"
        );
        let error = guess(Out, "1.1.1.1:80", Some("fd00::9"), &[]).unwrap_err();
        assert!(error.contains("different families"), "{error}");
    }
}
