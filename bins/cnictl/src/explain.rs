//! `explain`: what becomes of a flow, because of which rule, and why.

mod flow;
mod live;
mod report;
mod request;
mod way;

use anyhow::Result;
use clap::ValueEnum;
use ruleset::Protocol;
use ruleset::eval::State;

use crate::output::{Format, VerbAnswer};
use crate::pods::{NodeProcesses, SelectArgs, Viewer};
use crate::subject::SubjectArgs;
use flow::{Direction, parse_destination, parse_source};
use report::Explanation;
use request::parse_mark;

pub(crate) use flow::{FlowEnd, parse_end};
pub(crate) use live::{LiveExplanation, PacketReport};
pub(crate) use request::{FlowRequest, parse_packet};

const EXAMPLES: &str = "\
Examples:
  # Where does a connection of the application to 10.0.0.5:443 go?
  cnictl explain web.yaml --to 10.0.0.5:443

  # The same for a packet of the proxy, which runs as user and group 1337
  cnictl explain web.yaml --to 10.0.0.5:443 --uid 1337

  # What happens to connections from outside to port 8080, with every rule that matched on the way?
  cnictl explain web.yaml --in --to :8080 --trace

  # A probe of kubelet to a pod of ambient mode, from standard input
  kubectl get pod web -o yaml | cnictl explain - --namespace-labels istio.io/dataplane-mode=ambient --from-node --to :8080

  # A DNS query, in words of iptables
  cnictl explain web.yaml --to 10.96.0.10:53 --protocol udp --backend iptables

  # By what the kernel holds now for a pod of this node, rules of others too, and where the plan says something else
  cnictl explain --live shop/web --to 10.0.0.5:443 --diff

Exit codes: 0 answered, whatever the verdict; 1 failed, or with --diff the plan says something else; 2 wrong command line;
            3 with --live: there is no such pod";

/// Say what becomes of a flow of a pod, and which rule decides it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, mut_arg("manifest", |manifest| manifest.required(false).required_unless_present("live")))]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// In place of a manifest: this pod of the node, by the rules that the kernel holds for it now, ours and those of others
    #[arg(long, value_name = "NAMESPACE/POD", conflicts_with_all = ["manifest", "pod_name", "from_node"])]
    live: Option<String>,
    /// With --live: say where the plan's answer differs; exit code 1 if it does
    #[arg(long, requires = "live")]
    diff: bool,
    /// Destination; with --in the address may be left out (:8080)
    #[arg(long, value_name = "IP:PORT", value_parser = parse_destination)]
    to: FlowEnd,
    /// Source; the port may be left out
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_source)]
    from: Option<FlowEnd>,
    /// The packet comes to the pod
    #[arg(long = "in", conflicts_with = "outbound")]
    inbound: bool,
    /// The packet is sent by the pod (the default)
    #[arg(long = "out")]
    outbound: bool,
    /// The packet comes to the pod from a process of its node, as kubelet's probes do
    #[arg(long, conflicts_with_all = ["outbound", "from"])]
    from_node: bool,
    /// Mark of the packet, such as 0x539 of what ztunnel sends
    #[arg(long, value_name = "MARK", value_parser = parse_mark, default_value = "0")]
    mark: u32,
    #[arg(long, value_enum, default_value_t = ProtocolName::Tcp)]
    protocol: ProtocolName,
    /// User of the sending process (1000 if neither this nor --gid is given)
    #[arg(long, conflicts_with_all = ["inbound", "from_node"])]
    uid: Option<u32>,
    /// Group of the sending process (the number of --uid if only that is given)
    #[arg(long, conflicts_with_all = ["inbound", "from_node"])]
    gid: Option<u32>,
    /// The interface that the packet leaves or comes in by; for a destination in the pod itself it is lo, otherwise eth0
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// What connection tracking says of the packet; the nat tables see only new ones
    #[arg(long, value_enum, default_value_t = StateName::New)]
    state: StateName,
    /// The pod's proxy, or ztunnel, does not listen: it has not started yet, or has ended
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

impl ExplainArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        if let Some(pod) = &self.live {
            return self.explain_live(pod);
        }
        let v6 =
            [self.to.ip, self.from.and_then(|from| from.ip)].into_iter().flatten().any(|ip| ip.is_ipv6());
        let subject = self.subject.subject(v6)?;
        let flow = self.request().flow(&subject.ips)?;
        let explanation = Explanation::of(&subject, &flow);
        explanation.print(self.output, self.trace).map(VerbAnswer::text)
    }

    fn explain_live(&self, pod: &str) -> Result<VerbAnswer> {
        let viewer = Viewer::new(&self.subject.decision.configuration, false, None)?;
        let looked = match viewer.look_at_one(&SelectArgs::named(pod, None))? {
            Ok(looked) => looked,
            Err(answer) => return Ok(answer),
        };
        let flow = self.request().flow(&looked.report.addresses)?;
        LiveExplanation::of(&looked, &flow, self.diff, &NodeProcesses::read()?)?.answer(self.output)
    }

    fn request(&self) -> FlowRequest {
        FlowRequest {
            direction: if self.inbound || self.from_node { Direction::In } else { Direction::Out },
            protocol: match self.protocol {
                ProtocolName::Tcp => Protocol::Tcp,
                ProtocolName::Udp => Protocol::Udp,
            },
            to: self.to,
            from: self.from,
            interface: self.interface.clone(),
            uid: self.uid,
            gid: self.gid,
            mark: self.mark,
            state: match self.state {
                StateName::New => State::New,
                StateName::Established => State::Established,
                StateName::Related => State::Related,
                StateName::Invalid => State::Invalid,
            },
            listening: !self.proxy_down,
            from_node: self.from_node,
        }
    }
}
