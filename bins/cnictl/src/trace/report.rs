//! What is told of traced packets.

use std::fmt::Write as _;

use anyhow::Result;
use conflicts::{ObservedListener, ObservedNetns};
use facts::PodRef;
use kernel::nft::trace::{Met, TraceStep, TraceVerdict, ends};
use ruleset::Hook;
use ruleset::listed::{ListedChain, ListedRule, ListedTable};
use serde::Serialize;

use super::packets::{LOOPBACK, is_of_trace, word};
use crate::output::{Colour, Format, columns, one_line, paint, structured};
use crate::pods::API_VERSION;

/// Packets of a pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TraceReport {
    api_version: &'static str,
    kind: &'static str,
    pod: PodRef,
    /// How the network namespace was found.
    netns: String,
    /// In the order in which they came.
    pub(super) packets: Vec<TracedPacket>,
    /// There was more than the kernel had room for.
    pub(super) lost: bool,
    /// What is not shown, and why.
    not_shown: Vec<String>,
}

/// A packet's way through the namespace.
#[derive(Debug, Serialize)]
pub(super) struct TracedPacket {
    number: usize,
    /// What it met, in order.
    steps: Vec<StepReport>,
    verdict: EndReport,
}

#[derive(Debug, Clone, Serialize)]
struct StepReport {
    /// Empty where the chain is not known.
    hook: &'static str,
    /// The packet, where it is told: as it comes to a base chain.
    #[serde(skip_serializing_if = "String::is_empty")]
    packet: String,
    /// Family and table.
    table: String,
    chain: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<u64>,
    text: String,
    /// The plan's reason; absent of a rule of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    foreign: bool,
    verdict: String,
}

#[derive(Debug, Serialize)]
struct EndReport {
    /// `accepted`, `dropped` or `unknown`.
    action: &'static str,
    text: String,
}

// === impl TraceReport ===

impl TraceReport {
    pub(super) fn new(pod: PodRef, netns: String, not_shown: Vec<String>) -> Self {
        let packets = Vec::new();
        Self { api_version: API_VERSION, kind: "Trace", pod, netns, packets, lost: false, not_shown }
    }

    /// Before the first packet.
    pub(super) fn head(&self) -> String {
        let mut rows =
            vec![vec!["POD".to_owned(), format!("{}, network namespace {}", self.pod, self.netns)]];
        rows.extend(self.not_shown.iter().map(|what| vec!["NOT SHOWN".to_owned(), what.clone()]));
        columns(&rows)
    }

    /// After the last one.
    pub(super) fn foot(&self) -> String {
        let lost = "more was told than there was room for: steps are missing; trace a narrower flow (--from, --to)\n";
        if self.lost { lost.to_owned() } else { String::new() }
    }

    /// For programs, or once more for people.
    ///
    /// # Errors
    /// It has no JSON or YAML form, which would be a mistake in its type.
    pub(super) fn document(&self, format: Format) -> Result<String> {
        match format {
            Format::Json | Format::Yaml => structured(format, self),
            Format::Table | Format::Wide => {
                let packets: String = self.packets.iter().map(TracedPacket::table).collect();
                Ok(format!("{}{packets}{}", self.head(), self.foot()))
            }
        }
    }
}

// === impl TracedPacket ===

impl TracedPacket {
    pub(super) fn of(number: usize, steps: &[TraceStep], observed: &ObservedNetns) -> Self {
        let mut told = Vec::new();
        // A header comes with the first step of a base chain, which may be one of the table that makes the trace.
        let mut packet = String::new();
        for step in steps {
            if let Some(text) = header_text(step) {
                packet = text;
            }
            if !is_of_trace(step) {
                told.push(StepReport::of(step, std::mem::take(&mut packet), observed));
            }
        }
        Self { number, verdict: EndReport::of(steps, &told, observed), steps: told }
    }

    pub(super) fn table(&self) -> String {
        let colour = match self.verdict.action {
            "accepted" => Colour::Green,
            "dropped" => Colour::Red,
            _ => Colour::Yellow,
        };
        let mut text =
            format!("\npacket {}: {}\n", self.number, paint(&one_line(&self.verdict.text), colour));
        let head = ["HOOK", "PACKET", "TABLE", "CHAIN", "HANDLE", "RULE", "WHY", "VERDICT"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let mut last = "";
        for step in &self.steps {
            let StepReport { hook, packet, table, chain, handle, text, why, foreign, verdict } = step;
            let shown = if *hook == last && packet.is_empty() { "" } else { hook };
            last = hook;
            let handle = handle.map_or_else(String::new, |handle| handle.to_string());
            let why = if *foreign { "foreign".to_owned() } else { why.clone().unwrap_or_default() };
            let cells = [shown, packet, table, chain, &handle, text, &why, verdict];
            rows.push(cells.map(str::to_owned).to_vec());
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{}", columns(&rows));
        text
    }
}

fn header_text(step: &TraceStep) -> Option<String> {
    let header = step.header.as_ref()?;
    let (from, to) = ends(header);
    let ends = match header.ports {
        Some(_) => format!("{from} -> {to}"),
        None => format!("{} -> {}", header.source, header.destination),
    };
    let protocol = match header.protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        1 => "icmp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        number => format!("protocol {number}"),
    };
    let flags = header.tcp_flags.map(|flags| format!(" {flags}")).unwrap_or_default();
    let icmp = header.icmp.map(|icmp| format!(" type {} code {}", icmp.kind, icmp.code)).unwrap_or_default();
    let mark = if step.mark == 0 { String::new() } else { format!(" mark {:#x}", step.mark) };
    Some(format!("{ends} {protocol}{flags}{icmp}{mark}"))
}

// === impl StepReport ===

impl StepReport {
    fn of(step: &TraceStep, packet: String, observed: &ObservedNetns) -> Self {
        let found = Found::of(step, observed);
        let (text, handle) = match step.met {
            Met::Rule(handle) => (
                found.rule.map_or_else(|| "rule that came meanwhile".to_owned(), ToString::to_string),
                Some(handle),
            ),
            Met::End => ("end of the chain".to_owned(), None),
            Met::Policy => ("policy".to_owned(), None),
        };
        let is_rule = matches!(step.met, Met::Rule(_));
        Self {
            hook: found.hook().map_or("", Hook::name),
            packet,
            table: step.table.clone(),
            chain: step.chain.clone(),
            handle,
            text,
            why: found.rule.and_then(|rule| rule.why.as_deref().map(str::to_owned)),
            foreign: is_rule && found.is_foreign(),
            verdict: word(&step.verdict),
        }
    }
}

/// What was in the namespace when the trace began.
struct Found<'a> {
    table: Option<&'a ListedTable>,
    chain: Option<&'a ListedChain>,
    rule: Option<&'a ListedRule>,
}

impl<'a> Found<'a> {
    fn of(step: &TraceStep, observed: &'a ObservedNetns) -> Self {
        let table = observed.tables.iter().find(|table| table.name == step.table);
        let chain = table.and_then(|table| table.chain(&step.chain));
        let Met::Rule(handle) = step.met else { return Self { table, chain, rule: None } };
        let rule = chain.and_then(|chain| chain.rules.iter().find(|rule| rule.handle == Some(handle)));
        Self { table, chain, rule }
    }

    /// Of a base chain.
    fn hook(&self) -> Option<Hook> {
        Some(self.chain?.base?.hook)
    }

    fn is_foreign(&self) -> bool {
        match (self.table, self.rule) {
            (Some(table), Some(rule)) => table.is_foreign(rule),
            (table, _) => !table.is_some_and(ListedTable::is_only_ours),
        }
    }
}

// === impl EndReport ===

impl EndReport {
    fn of(steps: &[TraceStep], told: &[StepReport], observed: &ObservedNetns) -> Self {
        let ended = steps.iter().position(|step| matches!(step.verdict, TraceVerdict::Drop));
        if let Some((_, last)) = ended.zip(told.last()) {
            let why = match (&last.why, last.foreign) {
                (_, true) => ", which is foreign".to_owned(),
                (Some(why), _) if !why.is_empty() => format!(": {why}"),
                _ => String::new(),
            };
            let text = format!("dropped by {:?} of {} {}{why}", last.text, last.table, last.chain);
            return Self { action: "dropped", text };
        }
        if steps.iter().any(|step| step.verdict == TraceVerdict::Stolen) {
            return Self { action: "accepted", text: "accepted, and taken by a rule".to_owned() };
        }
        // The last of the chains that only look: behind all rules of its hook, or before them.
        let seen = steps.iter().rev().filter(|step| is_of_trace(step)).find_map(|step| {
            let (_, to) = ends(step.header.as_ref()?);
            Some((step, to))
        });
        let Some((step, to)) = seen else {
            return Self { action: "unknown", text: "unknown: its beginning was not told".to_owned() };
        };
        let (action, text) = match &*step.chain {
            "input" => match observed.listeners.iter().find(|one| one.port == to.port()) {
                Some(listener) => ("accepted", format!("accepted, for {to}: {}", receiver(listener))),
                None => ("accepted", format!("accepted, for {to}; nobody is known to listen there")),
            },
            "postrouting" if step.to_interface != Some(LOOPBACK) => {
                ("accepted", format!("accepted, sent on its way to {to}"))
            }
            hook => (
                "unknown",
                format!("unknown: no rule that is told of ended it, and it was not seen behind {hook}"),
            ),
        };
        Self { action, text }
    }
}

fn receiver(listener: &ObservedListener) -> String {
    let container =
        listener.container.as_ref().map_or_else(String::new, |name| format!(" of container {name}"));
    match listener.pid {
        Some(pid) => format!("process {pid}{container} listens, user {}", listener.uid),
        None => format!("user {} listens", listener.uid),
    }
}
