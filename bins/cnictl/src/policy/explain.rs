//! `policy explain`: whether policies allow a connection, and which rule decides.

use std::net::IpAddr;

use anyhow::Result;
use clap::ValueEnum;
use facts::networkpolicy::PolicyProtocol;
use policy::{FlowRoute, PolicyFlow, ServiceAddress, ServiceWorld as _, Traffic};
use ruleset::Family;
use serde::Serialize;

use super::end::{NotThere, PolicyEnd, parse_end, parse_name};
use super::held::KernelPolicies;
use super::judged::{JudgedConnection, word};
use super::source::{KnownCluster, PolicySourceArgs};
use crate::output::{Format, Usage, VerbAnswer, structured};
use crate::pods::{API_VERSION, EvidenceSource, NOTHING, PARTLY_UNKNOWN};

const EXAMPLES: &str = "\
Examples:
  # May shop/web connect to port 5432 of shop/db, and if not, why?
  cnictl policy explain --from shop/web --to shop/db --port 5432

  # From outside, by objects in files; no node is needed
  cnictl policy explain --manifests deploy/ --from 203.0.113.9 --to shop/web --port 8080

  # To a Service: each of its endpoints
  cnictl policy explain --from shop/web --service shop/db --port 5432

  # Do the rules that the kernel holds do the same?
  cnictl policy explain --from shop/web --to shop/db --port 5432 --kernel

  # In ambient mode, through the tunnel
  cnictl policy explain --from shop/web --to shop/db --port 5432 --hbone

Exit codes: 0 allowed
            1 denied, or only some endpoints of the Service are allowed, or the command failed
            2 wrong command line
            3 there is no such pod, node or Service
            4 nothing denies it, but the policies of one end, or with --kernel the kernel's rules, are not known here
            5 with --kernel: the kernel's rules do something else";

/// See above.
const KERNEL_DIFFERS: u8 = 5;

/// Say whether network policies allow a connection, and which rule decides
///
/// The verdict of both ends comes from the objects: policies, pods, namespaces. Where it is denied each policy that selects the pod is named, with
/// what of each rule fails, its peers or its ports. The port is the destination's own, as a container has it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExplainPolicyArgs {
    /// Where the connection comes from: NAMESPACE/POD, an address, node (the own), or node:NAME
    #[arg(long, value_name = "END", value_parser = parse_end)]
    from: PolicyEnd,
    /// Where it goes to
    #[arg(long, value_name = "END", value_parser = parse_end, required_unless_present = "service")]
    to: Option<PolicyEnd>,
    /// In place of --to: a Service; --port is its own port
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service, conflicts_with = "to")]
    service: Option<(String, String)>,
    /// Port of the destination
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[arg(long, value_enum, default_value_t = PolicyProtocolName::Tcp)]
    protocol: PolicyProtocolName,
    /// Through the tunnel of ambient mode (HBONE), in which --port is inside
    #[arg(long, conflicts_with = "service")]
    hbone: bool,
    /// Over IPv6 [default: the family that both ends have, IPv4 before IPv6]
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Compare it with what the rules in the node's network namespace do, as the kernel holds them
    #[arg(long, conflicts_with_all = ["hbone", "manifests"])]
    kernel: bool,
    #[command(flatten)]
    source: PolicySourceArgs,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PolicyProtocolName {
    Tcp,
    Udp,
    Sctp,
    /// Without ports, such as ICMP
    Other,
}

#[derive(Debug, Serialize)]
struct ExplanationDocument<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    evidence: &'a EvidenceSource,
    /// `allowed`, `denied` or `mixed`.
    verdict: &'static str,
    /// One, or one for each endpoint.
    connections: &'a [JudgedConnection],
    not_known: &'a [String],
}

fn service(text: &str) -> Result<(String, String), String> {
    parse_name(text).map_err(|()| "write NAMESPACE/NAME of the Service".to_owned())
}

impl ExplainPolicyArgs {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        let known = self.source.load()?;
        let flows = match self.flows(&known) {
            Ok(flows) => flows,
            Err(error) => match error.downcast::<NotThere>() {
                Ok(error) => {
                    let answer = VerbAnswer::failed(String::new(), error.to_string());
                    return Ok(VerbAnswer { exit: NOTHING, ..answer });
                }
                Err(error) => return Err(error),
            },
        };
        let held = self.kernel.then(|| KernelPolicies::read(&known)).transpose()?;
        let judged = |flow: &PolicyFlow| {
            let mut judged = JudgedConnection::of(&known, flow);
            judged.kernel = held.as_ref().map(|held| held.judge(flow));
            judged
        };
        let connections: Vec<JudgedConnection> = flows.iter().map(judged).collect();
        let allowed = connections.iter().filter(|one| one.allowed).count();
        let verdict = match allowed {
            0 => "denied",
            some if some == connections.len() => "allowed",
            _ => "mixed",
        };
        let text = self.print(&known, verdict, &connections)?;
        let is_unsure = connections.iter().any(JudgedConnection::is_unsure);
        let kernel = |comparison| {
            connections.iter().filter_map(|one| one.kernel.as_ref()).any(|one| one.comparison == comparison)
        };
        if kernel("differs") {
            let problem = "the kernel's rules do something else than policies say".to_owned();
            return Ok(VerbAnswer { exit: KERNEL_DIFFERS, ..VerbAnswer::failed(text, problem) });
        }
        let exit = match verdict {
            "allowed" if is_unsure || kernel("unknown") => PARTLY_UNKNOWN,
            "allowed" => 0,
            _ => 1,
        };
        Ok(VerbAnswer { exit, ..VerbAnswer::text(text) })
    }

    fn print(&self, known: &KnownCluster, verdict: &'static str, all: &[JudgedConnection]) -> Result<String> {
        if matches!(self.output, Format::Json | Format::Yaml) {
            let document = ExplanationDocument {
                api_version: API_VERSION,
                kind: "PolicyExplanation",
                evidence: &known.evidence,
                verdict,
                connections: all,
                not_known: &known.remarks,
            };
            return structured(self.output, &document);
        }
        let mut text = String::new();
        if let Some((namespace, name)) = &self.service {
            let port = self.port.unwrap_or_default();
            let count = |wanted| all.iter().filter(|one| one.allowed == wanted).count();
            let word = if verdict == "mixed" { "mixed".to_owned() } else { word(verdict == "allowed") };
            text += &format!(
                "{word}: Service {namespace}/{name} port {port}: {} endpoints allowed, {} denied\n",
                count(true),
                count(false)
            );
        }
        let parts: Vec<String> = all.iter().map(JudgedConnection::text).collect();
        text += &parts.join("");
        for remark in &known.remarks {
            text += &format!("not known: {remark}\n");
        }
        Ok(text + &known.evidence.line() + "\n")
    }

    /// The connections that are meant.
    fn flows(&self, known: &KnownCluster) -> Result<Vec<PolicyFlow>> {
        let traffic = self.traffic()?;
        let sources = self.from.addresses(known)?;
        if let Some((namespace, name)) = &self.service {
            return self.to_service(known, &sources, namespace, name);
        }
        let destinations = match &self.to {
            Some(end) => end.addresses(known)?,
            None => Vec::new(),
        };
        if let [address] = *destinations
            && let Some(service) = known.world.service_addresses().find(|one| self.is_asked(one, address))
        {
            return self.to_endpoints(&sources, &service.endpoints);
        }
        let (source, destination) = self.pair(&sources, &destinations)?;
        let route = if self.hbone { FlowRoute::Tunnel } else { FlowRoute::Direct };
        Ok(vec![PolicyFlow { source, destination, traffic, route }])
    }

    fn traffic(&self) -> Result<Traffic> {
        match (self.protocol.protocol(), self.port) {
            (Some(protocol), Some(port)) => Ok(Traffic::Port(protocol, port)),
            (None, None) => Ok(Traffic::Portless),
            (Some(_), None) => Err(Usage("give --port, or --protocol other".to_owned()).into()),
            (None, Some(_)) => Err(Usage("--protocol other has no --port".to_owned()).into()),
        }
    }

    /// Whether an address that is asked for is that of a Service, at this port.
    fn is_asked(&self, service: &ServiceAddress<'_>, address: IpAddr) -> bool {
        (Some(service.protocol), Some(service.port)) == (self.protocol.protocol(), self.port)
            && service.address == address
    }

    fn to_service(
        &self,
        known: &KnownCluster,
        sources: &[IpAddr],
        namespace: &str,
        name: &str,
    ) -> Result<Vec<PolicyFlow>> {
        let (Some(protocol), Some(port)) = (self.protocol.protocol(), self.port) else {
            return Err(Usage("--service needs --port, and a protocol with ports".to_owned()).into());
        };
        let family = if self.ipv6 || sources.iter().all(IpAddr::is_ipv6) { Family::V6 } else { Family::V4 };
        let endpoints = known.world.endpoints(namespace, name, protocol, port, family);
        let missing = || {
            let text =
                format!("Service {namespace}/{name} with port {port} ({}) is not known", protocol.name());
            let advice = match (known.evidence.by, known.knows_services) {
                ("manifests", _) => "add the Service and its EndpointSlices to the manifests",
                (_, true) => "look with kubectl get services",
                (_, false) => {
                    "an agent watches Services only while a pod of its node is judged in its own network namespace: give --manifests with the \
                     Service and its EndpointSlices, or ask for the address of an endpoint"
                }
            };
            NotThere(format!("{text}; {advice}"))
        };
        let endpoints = endpoints.ok_or_else(missing)?;
        if endpoints.is_empty() {
            return Err(NotThere(format!("Service {namespace}/{name} has no endpoint that answers")).into());
        }
        self.to_endpoints(sources, &endpoints)
    }

    fn to_endpoints(&self, sources: &[IpAddr], endpoints: &[(IpAddr, u16)]) -> Result<Vec<PolicyFlow>> {
        let flow = |(destination, port): &(IpAddr, u16)| -> Result<PolicyFlow> {
            let (source, destination) = self.pair(sources, &[*destination])?;
            let protocol = self.protocol.protocol().unwrap_or_default();
            let traffic = Traffic::Port(protocol, *port);
            Ok(PolicyFlow { source, destination, traffic, route: FlowRoute::Service })
        };
        endpoints.iter().map(flow).collect()
    }

    /// Addresses of one family.
    fn pair(&self, sources: &[IpAddr], destinations: &[IpAddr]) -> Result<(IpAddr, IpAddr)> {
        let of = |all: &[IpAddr], v6: bool| all.iter().copied().find(|address| address.is_ipv6() == v6);
        let families: &[bool] = if self.ipv6 { &[true] } else { &[false, true] };
        let both = families.iter().find_map(|v6| of(sources, *v6).zip(of(destinations, *v6)));
        let missing = || NotThere("the two ends have no address of one family".to_owned());
        Ok(both.ok_or_else(missing)?)
    }
}

impl PolicyProtocolName {
    fn protocol(self) -> Option<PolicyProtocol> {
        match self {
            Self::Tcp => Some(PolicyProtocol::Tcp),
            Self::Udp => Some(PolicyProtocol::Udp),
            Self::Sctp => Some(PolicyProtocol::Sctp),
            Self::Other => None,
        }
    }
}
