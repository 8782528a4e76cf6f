//! The answer, for people and for programs.

use std::fmt::Write as _;

use anyhow::Result;
use capture::Skip;
use capture::ambient::{self, HBONE_PORT};
use capture::settings::DNS_PORT;
use facts::PodRef;
use ruleset::Hook;
use ruleset::eval::{RulePlace, State, Verdict};
use ruleset::path::Path;
use serde::Serialize;

use super::flow::{Direction, Flow};
use super::way::{leave_node, through_pod};
use crate::output::{Colour, Format, columns, paint, structured};
use crate::rules::{RuleReport, describe};
use crate::subject::{AboutPod, By, Captured, PodOutcome, PodSubject};

/// What becomes of a flow.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    #[serde(flatten)]
    about: AboutPod,
    #[serde(skip_serializing_if = "Option::is_none")]
    capture: Option<CaptureReport>,
    flow: FlowReport,
    /// What the node's rules do with a packet of the node before it comes to the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeReport>,
    verdict: VerdictReport,
    /// The rule that gave the verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<RuleReport>,
    /// The rules by whose jumps the packet came to it, outermost first.
    path: Vec<RuleReport>,
    /// Every rule that matched, in order.
    trace: Vec<TraceEntry>,
    assumed: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct CaptureReport {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    native_sidecar: Option<bool>,
    backend: String,
    ipv6: bool,
    #[serde(skip)]
    summary: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FlowReport {
    direction: &'static str,
    protocol: &'static str,
    from: String,
    to: String,
    interface: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
}

#[derive(Debug, Serialize)]
struct NodeReport {
    /// The source address in the pod.
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<RuleReport>,
}

#[derive(Debug, Serialize)]
struct VerdictReport {
    /// `pass`, `redirect`, `tproxy` or `drop`.
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    text: String,
}

#[derive(Debug, Serialize)]
struct TraceEntry {
    hook: &'static str,
    #[serde(flatten)]
    rule: RuleReport,
}

impl Explanation {
    pub(super) fn of(subject: &PodSubject, flow: &Flow) -> Self {
        let mut explanation = match &subject.outcome {
            PodOutcome::Skipped(skip) => Self::of_skipped(&subject.name, skip, flow),
            PodOutcome::Captured(captured) => Self::of_captured(&subject.name, captured, flow),
        };
        explanation.assumed = [subject.assumed.clone(), flow.assumed.clone()].concat();
        explanation
    }

    fn of_skipped(pod: &PodRef, skip: &Skip, flow: &Flow) -> Self {
        Self {
            about: AboutPod::skipped(pod, skip),
            capture: None,
            flow: FlowReport::of(flow),
            node: None,
            verdict: VerdictReport {
                action: "pass",
                port: None,
                text: "passes: the pod is not captured, its traffic is left alone".to_owned(),
            },
            rule: None,
            path: Vec::new(),
            trace: Vec::new(),
            assumed: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn of_captured(pod: &PodRef, captured: &Captured, flow: &Flow) -> Self {
        let backend = captured.facts.backend;
        let (flow, node) = from_node(captured, flow);
        let flow = &flow;
        let way = through_pod(&captured.plan, flow);
        let report = |place: &RulePlace<'_>| describe(backend, place);
        let decided = way.decided_by();
        Self {
            about: AboutPod::planned(pod, captured.complete),
            capture: Some(CaptureReport {
                mode: captured.mode(),
                native_sidecar: captured.native_sidecar(),
                backend: backend.to_string(),
                ipv6: captured.facts.ipv6,
                summary: captured.summary(),
            }),
            flow: FlowReport::of(flow),
            node,
            verdict: VerdictReport::of(&way, flow, &captured.by),
            rule: decided.as_ref().map(|(place, _)| report(place)),
            path: decided.iter().flat_map(|(_, callers)| *callers).map(report).collect(),
            trace: way
                .trace()
                .map(|(hook, place)| TraceEntry { hook: Hook::name(hook), rule: report(&place) })
                .collect(),
            assumed: Vec::new(),
            warnings: captured.warnings.clone(),
        }
    }

    /// The text; people see the trace only when they ask for it.
    ///
    /// # Errors
    /// The answer has no JSON or YAML form, which would be a mistake in its type.
    pub(super) fn print(&self, format: Format, trace: bool) -> Result<String> {
        match format {
            Format::Json | Format::Yaml => structured(format, self),
            Format::Table | Format::Wide => Ok(self.table(trace || format == Format::Wide)),
        }
    }

    fn table(&self, trace: bool) -> String {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: &str, text: String| rows.push(vec![name.to_owned(), text]);
        let state = match (&self.capture, self.about.reason) {
            (Some(capture), _) => capture.summary.clone(),
            (None, reason) => format!("not captured: {}", reason.unwrap_or_default()),
        };
        row("POD", format!("{}, {state}", self.about.pod));
        row("FLOW", self.flow.to_string());
        if let Some(node) = &self.node {
            let rule = node.rule.as_ref();
            let why = rule.map_or("no rule of ours changes it", |rule| &*rule.why);
            row("NODE", format!("leaves the node from {}: {why}", node.source));
        }
        row("VERDICT", self.verdict.painted());
        match (&self.rule, &self.about.detail) {
            (Some(rule), _) => {
                row("RULE", rule.text.clone());
                row("CHAIN", format!("{} {}, rule {}", rule.table, rule.chain, rule.position));
                row("WHY", rule.why.clone());
                for step in self.path.iter().rev() {
                    row("", format!("{} ({} rule {})", step.why, step.chain, step.position));
                }
            }
            (None, Some(detail)) => row("WHY", detail.clone()),
            (None, None) => row("RULE", "none: no rule ends its way".to_owned()),
        }
        for assumed in &self.assumed {
            row("ASSUMED", assumed.clone());
        }
        for warning in &self.warnings {
            row("WARNING", warning.clone());
        }
        let mut out = columns(&rows);
        if trace && self.capture.is_some() {
            out.push('\n');
            out.push_str(&self.trace_table());
        }
        out
    }

    fn trace_table(&self) -> String {
        if self.trace.is_empty() {
            return "no rule matched\n".to_owned();
        }
        let head = ["HOOK", "TABLE", "CHAIN", "NO", "RULE", "WHY"].map(str::to_owned).to_vec();
        let rows = self.trace.iter().map(|TraceEntry { hook, rule }| {
            let RuleReport { table, chain, position, text, why } = rule.clone();
            vec![(*hook).to_owned(), table, chain, position.to_string(), text, why]
        });
        columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
    }
}

impl FlowReport {
    pub(super) fn of(flow: &Flow) -> Self {
        Self {
            direction: if flow.direction == Direction::In { "in" } else { "out" },
            protocol: flow.protocol.name(),
            from: flow.source.to_string(),
            to: flow.destination.to_string(),
            interface: flow.interface.clone(),
            uid: flow.owner.map(|owner| owner.uid),
            gid: flow.owner.map(|owner| owner.gid),
        }
    }
}

impl std::fmt::Display for FlowReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { direction, protocol, from, to, interface, uid, gid } = self;
        write!(f, "{direction}, {protocol} {from} -> {to} by {interface}")?;
        if let (Some(uid), Some(gid)) = (uid, gid) {
            write!(f, ", sent by uid {uid} gid {gid}")?;
        }
        Ok(())
    }
}

impl VerdictReport {
    fn of(way: &Path<'_>, flow: &Flow, by: &By) -> Self {
        let mut text = String::new();
        let (action, port) = match way.verdict() {
            // nat looks at first packets only, and the connection remembers what it said
            Verdict::Pass if matches!(flow.state, State::Established | State::Related) => {
                text.push_str("follows what was decided for the first packet of its connection");
                ("pass", None)
            }
            Verdict::Pass => {
                text.push_str(match (flow.direction, flow.interface.as_str()) {
                    (Direction::In, _) => "passes: comes to the pod directly",
                    (Direction::Out, "lo") => "passes: stays in the pod, directly",
                    (Direction::Out, _) => "passes: leaves the pod directly",
                });
                ("pass", None)
            }
            Verdict::Drop => {
                text.push_str("dropped");
                ("drop", None)
            }
            Verdict::Reject(_) => {
                text.push_str("rejected: the sender gets an error");
                ("reject", None)
            }
            // Writing to a String cannot fail, here and below.
            Verdict::Redirect { port } => {
                let _ = write!(text, "redirected to {port} ({})", owner_of(port, by));
                if !flow.listening {
                    text.push_str(", which does not listen: the connection is refused");
                }
                ("redirect", Some(port))
            }
            Verdict::Snat { to } => {
                let _ = write!(text, "goes on from another source address, {to}");
                ("snat", None)
            }
            Verdict::Tproxy { port } => {
                let who = owner_of(port, by);
                let _ = write!(text, "handed to {port} ({who}) by TPROXY, addresses unchanged");
                ("tproxy", Some(port))
            }
        };
        Self { action, port, text }
    }

    fn painted(&self) -> String {
        let colour = match self.action {
            "pass" => Colour::Yellow,
            "drop" | "reject" => Colour::Red,
            _ => Colour::Green,
        };
        paint(&self.text, colour)
    }
}

/// The flow as it comes to the pod, and what the node's own rules did before.
fn from_node(captured: &Captured, flow: &Flow) -> (Flow, Option<NodeReport>) {
    let host = captured.node().filter(|_| flow.from_node);
    let Some(host) = host else {
        return (flow.clone(), None);
    };
    let backend = host.plan.backend;
    let members: Vec<_> = host.members.iter().map(|member| member.address).collect();
    let path = leave_node(&host.plan, flow, &members);
    let mut flow = flow.clone();
    if let Verdict::Snat { to } = path.verdict() {
        flow.source.set_ip(to);
    }
    let rule = path.decided_by().filter(|_| matches!(path.verdict(), Verdict::Snat { .. }));
    let rule = rule.map(|(place, _)| describe(backend, &place));
    let node = NodeReport { source: flow.source.ip().to_string(), rule };
    (flow, Some(node))
}

/// Who listens on a port that traffic is sent to.
fn owner_of(port: u16, by: &By) -> &'static str {
    match (by, port) {
        (By::Sidecar { settings, .. }, port) if port == settings.proxy_port => "proxy, outbound",
        (By::Sidecar { settings, .. }, port) if port == settings.capture_port => "proxy, inbound",
        (By::Sidecar { .. }, DNS_PORT) => "proxy's DNS",
        (By::Sidecar { .. }, _) => "proxy",
        (By::Ztunnel(_), ambient::OUTBOUND_PORT) => "ztunnel, outbound",
        (By::Ztunnel(_), ambient::INBOUND_PORT) => "ztunnel, inbound in plain text",
        (By::Ztunnel(_), ambient::DNS_PORT) => "ztunnel's DNS",
        (By::Ztunnel(_), HBONE_PORT) => "ztunnel, HBONE",
        (By::Ztunnel(_), _) => "ztunnel",
    }
}
