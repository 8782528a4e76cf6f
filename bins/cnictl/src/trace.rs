//! `trace`: the way of real packets through a pod's network namespace, rule by rule, as the kernel tells it.

mod drops;
mod packets;
mod report;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use conflicts::ObservedNetns;
use kernel::nft::rule_handles;
use kernel::nft::trace::{self, TraceStep, TracedFlow, Tracing};
use ruleset::listed::Lister;
use ruleset::{Hook, Limit, Protocol};

use crate::chain::seconds;
use crate::configuration::ConfigurationArgs;
use crate::explain::{FlowEnd, parse_end};
use crate::output::{Format, Usage, VerbAnswer, print_now};
use crate::pods::{
    LocatedNetns, LookedPod, NOTHING, NodeProcesses, PARTLY_UNKNOWN, SelectArgs, Viewer, observe,
};
use packets::TracedPackets;
use report::{TraceReport, TracedPacket};

/// The longest time that packets may be traced for: a forgotten trace costs the pod.
const LONGEST: Duration = Duration::from_secs(60);
/// Packets a second that are traced, whatever comes: each makes some twenty messages.
const RATE: u32 = 20;
/// A packet that nothing more is told of for this long has ended here.
const QUIET: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  # Which rules do the next packets of the pod to 203.0.113.9:443 meet?
  cnictl trace shop/web --to 203.0.113.9:443

  # What comes in for port 8080, three packets, for half a minute at most
  cnictl trace shop/web --in --to :8080 --count 3 --duration 30

  # Which rules drop something meanwhile, in the pod and on the node?
  cnictl trace shop/web --drops

The pod gets a table inet istio-trace for this time. It belongs to this program, and the kernel removes it when the program ends, however it ends.

Exit codes: 0 packets were seen; 1 failed, or somebody traces there already; 2 wrong command line; 3 there is no such pod, or no packet came;
            4 this kernel cannot do it";

/// Follow real packets of a pod through the rules of its network namespace
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TraceArgs {
    /// The pod, as NAMESPACE/NAME, or its name with -n
    #[arg(value_name = "POD")]
    pod: String,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Packets from here
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_end)]
    from: Option<FlowEnd>,
    /// Packets to there, such as 10.0.0.5:443, 10.0.0.5 or :443
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_end)]
    to: Option<FlowEnd>,
    /// Packets of this protocol (tcp where a port is given)
    #[arg(long, value_enum)]
    protocol: Option<TracedProtocol>,
    /// Only what comes to the pod
    #[arg(long = "in", conflicts_with = "outbound")]
    inbound: bool,
    /// Only what the pod sends
    #[arg(long = "out")]
    outbound: bool,
    /// End after so many packets
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
    /// End after so many seconds, at most 60
    #[arg(long, value_name = "SECONDS", value_parser = time, default_value = "10")]
    duration: Duration,
    /// Only listen: somebody traces there already
    #[arg(long, conflicts_with_all = ["from", "to", "protocol", "inbound", "outbound"])]
    join: bool,
    /// A line for each message of the kernel, without what the rules mean
    #[arg(long, conflicts_with_all = ["drops", "output"])]
    raw: bool,
    /// In place of packets: the rules that drop, here and on the node, whose counters go up meanwhile
    #[arg(long, conflicts_with_all = ["from", "to", "protocol", "inbound", "outbound", "join"])]
    drops: bool,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TracedProtocol {
    Tcp,
    Udp,
    Icmp,
    Icmpv6,
}

fn time(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| match time <= LONGEST {
        true => Ok(time),
        false => Err(format!("at most {} seconds", LONGEST.as_secs())),
    })
}

impl TraceArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let flow = self.flow()?;
        let viewer = Viewer::new(&self.configuration, false, None)?;
        let looked = match viewer.look_at_one(&SelectArgs::named(&self.pod, self.namespace.clone()))? {
            Ok(looked) => looked,
            Err(answer) => return Ok(answer),
        };
        let pod = looked.report.pod();
        let place = looked.place.as_ref().with_context(|| {
            format!("the network namespace of pod {pod} is not known: {}", looked.report.problem)
        })?;
        let observed = observed(&looked, place)?;
        if self.drops {
            return drops::run(&pod, place, &observed, self.duration, self.output);
        }
        let begun = place.netns.enter(|inside| match self.join {
            true => Tracing::join(inside),
            false => Tracing::begin(inside, &flow),
        });
        let tracing = match begun.context("enter the network namespace of the pod")? {
            Ok(tracing) => tracing,
            Err(error) if trace::is_taken(&error) => {
                let problem = format!(
                    "somebody traces in pod {pod} already (table inet {}): wait until they have ended, or listen with --join",
                    trace::TABLE
                );
                return Ok(VerbAnswer::failed(String::new(), problem));
            }
            Err(error) if error.is_unsupported() => {
                let answer = VerbAnswer::failed(String::new(), fault::chain(&error));
                return Ok(VerbAnswer { exit: PARTLY_UNKNOWN, ..answer });
            }
            Err(error) => return Err(error.into()),
        };
        self.follow(tracing, TraceReport::new(pod, place.how.clone(), notes(&observed)), &observed)
    }

    fn flow(&self) -> Result<TracedFlow> {
        let both = [self.from, self.to].into_iter().flatten();
        let has_port = both.clone().any(|end| end.port.is_some());
        let families: Vec<bool> = both.filter_map(|end| end.ip).map(|ip| ip.is_ipv6()).collect();
        if families.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(Usage("--from and --to are of different families".to_owned()).into());
        }
        let protocol = self.protocol.or(has_port.then_some(TracedProtocol::Tcp));
        if has_port && matches!(protocol, Some(TracedProtocol::Icmp | TracedProtocol::Icmpv6)) {
            return Err(Usage("a packet of ICMP has no port".to_owned()).into());
        }
        let protocol = protocol.map(|protocol| match protocol {
            TracedProtocol::Tcp => Protocol::Tcp,
            TracedProtocol::Udp => Protocol::Udp,
            TracedProtocol::Icmp => Protocol::Icmp,
            TracedProtocol::Icmpv6 => Protocol::Icmpv6,
        });
        let end = |end: Option<FlowEnd>| end.map_or((None, None), |end| (end.ip, end.port));
        let hooks = [(Hook::Output, self.inbound), (Hook::Prerouting, self.outbound)];
        Ok(TracedFlow {
            matches: TracedFlow::between(protocol, end(self.from), end(self.to)),
            hooks: hooks.into_iter().filter(|(_, left_out)| !left_out).map(|(hook, _)| hook).collect(),
            limit: Limit { per_second: RATE, burst: RATE },
        })
    }

    /// Prints packets as they come, or all of them at the end where a program reads it.
    fn follow(
        &self,
        mut tracing: Tracing,
        mut report: TraceReport,
        observed: &ObservedNetns,
    ) -> Result<VerbAnswer> {
        let shows = !self.raw && self.output == Format::Table;
        let mut packets = TracedPackets::default();
        let mut is_read = !shows || print_now(&report.head())?;
        let deadline = Instant::now() + self.duration;
        let mut told = false;
        while is_read && report.packets.len() < usize::from(self.count) && Instant::now() < deadline {
            let heard = tracing.hear(QUIET.min(deadline.saturating_duration_since(Instant::now())))?;
            report.lost |= heard.lost;
            told |= !heard.steps.is_empty();
            if self.raw {
                let lines: String = heard.steps.iter().map(packets::raw_line).collect();
                is_read = lines.is_empty() || print_now(&lines)?;
            }
            heard.steps.into_iter().for_each(|step| packets.take(step));
            is_read &= self.take_ended(packets.ended(QUIET), &mut report, observed, shows)?;
        }
        self.take_ended(packets.ended(Duration::ZERO), &mut report, observed, shows)?;
        drop(tracing);
        Ok(self.answer(&report, shows, told))
    }

    fn take_ended(
        &self,
        ended: Vec<Vec<TraceStep>>,
        report: &mut TraceReport,
        observed: &ObservedNetns,
        shows: bool,
    ) -> Result<bool> {
        let mut is_read = true;
        for packet in ended {
            if report.packets.len() == usize::from(self.count) {
                break;
            }
            let packet = TracedPacket::of(report.packets.len() + 1, &packet, observed);
            is_read &= !shows || print_now(&packet.table())?;
            report.packets.push(packet);
        }
        Ok(is_read)
    }

    fn answer(&self, report: &TraceReport, shows: bool, told: bool) -> VerbAnswer {
        if report.packets.is_empty() && !told {
            let problem = format!("no such packet came in {} seconds", self.duration.as_secs_f64());
            return VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(String::new(), problem) };
        }
        match (self.raw, shows) {
            (true, _) => VerbAnswer::text(String::new()),
            (_, true) => VerbAnswer::text(report.foot()),
            _ => match report.document(self.output) {
                Ok(text) => VerbAnswer::text(text),
                Err(error) => VerbAnswer::failed(String::new(), format!("{error:#}")),
            },
        }
    }
}

/// What is in the pod's namespace, ours and that of others, each rule with its handle.
fn observed(looked: &LookedPod, place: &LocatedNetns) -> Result<ObservedNetns> {
    let mut observed = match looked.observed.as_deref() {
        Some(observed) => observed.clone(),
        None => observe(place, looked.captured.as_deref(), &NodeProcesses::read()?)?,
    };
    let handles = place.netns.enter(rule_handles).context("enter the network namespace of the pod")??;
    for table in &mut observed.tables {
        for chain in &mut table.chains {
            let Some(handles) = handles.get(&(table.name.clone(), chain.name.clone())) else { continue };
            // Rules that are known from the plan, or from iptables, have none: by their order, unless others have come.
            if handles.len() == chain.rules.len() {
                let rules = chain.rules.iter_mut().zip(handles);
                rules.for_each(|(rule, handle)| rule.handle = rule.handle.or(Some(*handle)));
            }
        }
    }
    Ok(observed)
}

/// What a trace does not show there.
fn notes(observed: &ObservedNetns) -> Vec<String> {
    let legacy = observed.tables.iter().any(|table| {
        table.lister == Lister::IptablesLegacy && table.chains.iter().any(|chain| !chain.rules.is_empty())
    });
    let legacy = legacy.then(|| "rules of iptables-legacy, which the kernel tells nothing of".to_owned());
    legacy.into_iter().chain(observed.not_looked_at.iter().cloned()).collect()
}
