//! `explain`: what becomes of a flow, because of which rule, and why.

mod flow;
mod report;
mod way;

use std::net::IpAddr;

use anyhow::Result;
use clap::ValueEnum;
use ruleset::eval::{Owner, State};
use ruleset::{Family, Protocol};

use crate::output::{Answer, Format, Usage};
use crate::subject::{Subject, SubjectArgs};
use flow::{Direction, Endpoint, Flow, Guess, parse_destination, parse_source};
use report::Explanation;

const EXAMPLES: &str = "\
Examples:
  # Where does a connection of the application to 10.0.0.5:443 go?
  cnictl explain web.yaml --to 10.0.0.5:443

  # The same for a packet of the proxy, which runs as user and group 1337
  cnictl explain web.yaml --to 10.0.0.5:443 --uid 1337

  # What happens to connections from outside to port 8080, with every rule that matched on the way?
  cnictl explain web.yaml --in --to :8080 --trace

  # A DNS query, in words of iptables
  cnictl explain web.yaml --to 10.96.0.10:53 --protocol udp --backend iptables

Exit codes: 0 answered, whatever the verdict; 1 failed; 2 wrong command line";

/// Say what becomes of a flow of a pod, and which rule decides it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Destination; with --in the address may be left out (:8080)
    #[arg(long, value_name = "IP:PORT", value_parser = parse_destination)]
    to: Endpoint,
    /// Source; the port may be left out
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_source)]
    from: Option<Endpoint>,
    /// The packet comes to the pod
    #[arg(long = "in", conflicts_with = "outbound")]
    inbound: bool,
    /// The packet is sent by the pod (the default)
    #[arg(long = "out")]
    outbound: bool,
    #[arg(long, value_enum, default_value_t = ProtocolName::Tcp)]
    protocol: ProtocolName,
    /// User of the sending process (1000 if neither this nor --gid is given)
    #[arg(long, conflicts_with = "inbound")]
    uid: Option<u32>,
    /// Group of the sending process (the number of --uid if only that is given)
    #[arg(long, conflicts_with = "inbound")]
    gid: Option<u32>,
    /// The interface that the packet leaves or comes in by; for a destination in the pod itself it is lo, otherwise eth0
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// What connection tracking says of the packet; the nat tables see only new ones
    #[arg(long, value_enum, default_value_t = StateName::New)]
    state: StateName,
    /// The pod's proxy does not listen: it has not started yet, or has ended
    #[arg(long)]
    proxy_down: bool,
    /// List every rule that matched, in order
    #[arg(long)]
    trace: bool,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtocolName {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateName {
    New,
    Established,
    Related,
    Invalid,
}

/// The user and group of an application whose manifest and caller say nothing: any that is not the proxy's gives the same answer.
const APPLICATION: u32 = 1000;

impl Args {
    pub(crate) fn run(&self) -> Result<Answer> {
        let flow = self.flow()?;
        let subject = self.subject.subject(flow.family() == Family::V6)?;
        let explanation = match &subject {
            Subject::Skipped { pod, skip } => Explanation::of_skipped(pod, skip, &flow),
            Subject::Captured(captured) => Explanation::of_captured(captured, &flow)?,
        };
        explanation.print(self.output, self.trace).map(Answer::text)
    }

    fn flow(&self) -> Result<Flow> {
        let direction = if self.inbound { Direction::In } else { Direction::Out };
        if direction == Direction::Out && self.to.ip.is_none() {
            let text = "--to of a packet that the pod sends needs an address, such as 10.0.0.5:443";
            return Err(Usage(text.to_owned()).into());
        }
        let mut assumed = Vec::new();
        let owner = (direction == Direction::Out).then(|| self.owner(&mut assumed));
        let guess = Guess {
            direction,
            to: self.to,
            from: self.from,
            pod_ips: &self.subject.pod_ips,
            interface: self.interface.as_deref(),
        };
        let (source, destination, interface) = guess.endpoints(&mut assumed).map_err(Usage)?;
        Ok(Flow {
            direction,
            protocol: match self.protocol {
                ProtocolName::Tcp => Protocol::Tcp,
                ProtocolName::Udp => Protocol::Udp,
            },
            source,
            destination,
            interface,
            owner,
            state: match self.state {
                StateName::New => State::New,
                StateName::Established => State::Established,
                StateName::Related => State::Related,
                StateName::Invalid => State::Invalid,
            },
            listening: !self.proxy_down,
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

/// Loopback of the family of an address.
fn loopback_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}
