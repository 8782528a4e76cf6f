//! `explain --live`: a packet through what the kernel holds for a pod, ours and that of others.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use conflicts::{LiveEnd, LivePath, LiveRule, LiveStop, follow};
use facts::PodRef;
use ruleset::Hook;
use ruleset::eval::Verdict;
use serde::Serialize;

use super::flow::Flow;
use super::report::FlowReport;
use super::request::FlowRequest;
use super::way::{first_packet, through_pod};
use crate::output::{Colour, Format, VerbAnswer, columns, one_line, paint, structured};
use crate::pods::{API_VERSION, LookedPod, NodeProcesses, observe};
use crate::subject::Captured;

/// What becomes of a flow by the kernel's rules.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LiveDocument<'a> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    explanation: &'a LiveExplanation,
}

#[derive(Debug, Serialize)]
pub(crate) struct LiveExplanation {
    pub(crate) pod: PodRef,
    /// How the network namespace was found that was read.
    pub(crate) netns: String,
    pub(crate) flow: FlowReport,
    /// Each hook that the packet passes, in order.
    pub(crate) hooks: Vec<HookReport>,
    pub(crate) verdict: EndReport,
    /// What the plan says, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PlanReport>,
    /// What could not be looked at, and why.
    pub(crate) not_looked_at: Vec<String>,
    pub(crate) assumed: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct HookReport {
    pub(crate) hook: &'static str,
    /// The packet as it comes there.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) mark: u32,
    /// The rules that match, in order.
    pub(crate) rules: Vec<LiveRuleReport>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct LiveRuleReport {
    /// Family and table; empty for the kernel's routing.
    pub(crate) table: String,
    pub(crate) chain: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) handle: Option<u64>,
    pub(crate) text: String,
    /// The plan's reason; absent of a rule of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    pub(crate) foreign: bool,
    /// Empty where the packet goes on.
    pub(crate) verdict: String,
    /// Whether the rule could be read wholly.
    pub(crate) read: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct EndReport {
    /// `captured`, `bypass`, `dropped`, `delivered` or `unknown`.
    pub(crate) action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    pub(crate) text: String,
}

#[derive(Debug, Serialize)]
struct PlanReport {
    verdict: EndReport,
    /// Whether the kernel's rules say something else.
    differs: bool,
}

/// What becomes of one packet by the kernel's rules, without the way that it takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PacketReport {
    /// Absent where the pod cannot have such a packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<FlowReport>,
    verdict: EndReport,
    assumed: Vec<String>,
}

impl PacketReport {
    /// Follows the packet through the pod's namespace, which is read if it was not yet; where that cannot be done the verdict is unknown.
    pub(crate) fn of(looked: &LookedPod, request: &FlowRequest, processes: &NodeProcesses) -> Self {
        let unknown = |flow: Option<&Flow>, error: &anyhow::Error| Self {
            flow: flow.map(FlowReport::of),
            verdict: EndReport {
                action: "unknown",
                port: None,
                text: format!("unknown: {}", one_line(&format!("{error:#}"))),
            },
            assumed: flow.map(|flow| flow.assumed.clone()).unwrap_or_default(),
        };
        let flow = match request.flow(&looked.report.addresses) {
            Ok(flow) => flow,
            Err(error) => return unknown(None, &error),
        };
        match LiveExplanation::of(looked, &flow, false, processes) {
            Ok(LiveExplanation { flow, verdict, assumed, .. }) => Self { flow: Some(flow), verdict, assumed },
            Err(error) => unknown(Some(&flow), &error),
        }
    }

    /// For people.
    pub(crate) fn line(&self, pod: &str) -> String {
        let Self { flow, verdict, .. } = self;
        let flow = flow.as_ref().map_or_else(String::new, |flow| format!(" ({flow})"));
        format!("{} {pod}: {}{flow}\n", paint("packet:", verdict.colour()), one_line(&verdict.text))
    }
}

impl LiveExplanation {
    /// The same for a packet that is described as on the command line.
    ///
    /// # Errors
    /// As [`Self::of`], or what is said of the packet does not fit together.
    pub(crate) fn of_request(
        looked: &LookedPod,
        request: &FlowRequest,
        processes: &NodeProcesses,
    ) -> Result<Self> {
        Self::of(looked, &request.flow(&looked.report.addresses)?, false, processes)
    }

    /// Follows the flow through the pod's namespace, which is read if it was not yet.
    ///
    /// # Errors
    /// The namespace is not found or cannot be read.
    pub(super) fn of(
        looked: &LookedPod,
        flow: &Flow,
        with_plan: bool,
        processes: &NodeProcesses,
    ) -> Result<Self> {
        let pod = looked.report.pod();
        let Some(place) = &looked.place else {
            let problem = &looked.report.problem;
            let problem = if problem.is_empty() { String::new() } else { format!(": {problem}") };
            bail!("the network namespace of pod {pod} is not known{problem}");
        };
        let read;
        let observed = match looked.observed.as_deref() {
            Some(observed) => observed,
            None => {
                read = observe(place, looked.captured.as_deref(), processes)?;
                &read
            }
        };
        let path = follow(observed, &first_packet(flow));
        let verdict = EndReport::of(&path, &observed.not_looked_at);
        let plan = looked.captured.as_deref().filter(|_| with_plan);
        let plan = plan.map(|captured| PlanReport::of(captured, flow, &verdict));
        Ok(Self {
            pod,
            netns: place.how.clone(),
            flow: FlowReport::of(flow),
            hooks: path.stops.iter().map(HookReport::of).collect(),
            verdict,
            plan,
            not_looked_at: observed.not_looked_at.clone(),
            assumed: flow.assumed.clone(),
        })
    }

    /// The answer; with the plan, a difference is a failure.
    ///
    /// # Errors
    /// It has no JSON or YAML form, which would be a mistake in its type.
    pub(super) fn answer(&self, format: Format) -> Result<VerbAnswer> {
        let document = LiveDocument { api_version: API_VERSION, kind: "LiveExplanation", explanation: self };
        let text = match format {
            Format::Json | Format::Yaml => structured(format, &document)?,
            Format::Table | Format::Wide => self.table(),
        };
        Ok(match self.plan.as_ref().filter(|plan| plan.differs) {
            Some(plan) => {
                let problem = format!(
                    "the kernel's rules do not what the plan says: {}, and by the plan {}",
                    one_line(&self.verdict.text),
                    plan.verdict.text
                );
                VerbAnswer::failed(text, problem)
            }
            None => VerbAnswer::text(text),
        })
    }

    fn table(&self) -> String {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: &str, text: String| rows.push(vec![name.to_owned(), text]);
        row("POD", format!("{}, network namespace {}", self.pod, self.netns));
        row("FLOW", self.flow.to_string());
        row("VERDICT", paint(&self.verdict.text, self.verdict.colour()));
        if let Some(plan) = &self.plan {
            row(
                "PLAN",
                format!("{}: {}", if plan.differs { "differs" } else { "the same" }, plan.verdict.text),
            );
        }
        for gap in &self.not_looked_at {
            row("NOT LOOKED AT", gap.clone());
        }
        for assumed in &self.assumed {
            row("ASSUMED", assumed.clone());
        }
        let head = ["HOOK", "PACKET", "TABLE", "CHAIN", "HANDLE", "RULE", "WHY", "VERDICT"];
        let mut hooks = vec![head.map(str::to_owned).to_vec()];
        self.hooks.iter().for_each(|hook| hook.add_rows(&mut hooks));
        format!("{}\n{}", columns(&rows), columns(&hooks))
    }
}

impl HookReport {
    fn of(stop: &LiveStop) -> Self {
        let LiveStop { hook, packet, rules } = stop;
        Self {
            hook: Hook::name(*hook),
            from: SocketAddr::new(packet.source, packet.source_port).to_string(),
            to: SocketAddr::new(packet.destination, packet.destination_port).to_string(),
            mark: packet.mark,
            rules: rules.iter().map(LiveRuleReport::of).collect(),
        }
    }

    fn add_rows(&self, rows: &mut Vec<Vec<String>>) {
        let mark = if self.mark == 0 { String::new() } else { format!(" mark {:#x}", self.mark) };
        let packet = format!("{} -> {}{mark}", self.from, self.to);
        if self.rules.is_empty() {
            let nothing = [self.hook, &packet, "", "", "", "no rule matches", "", ""];
            rows.push(nothing.map(str::to_owned).to_vec());
        }
        for (index, rule) in self.rules.iter().enumerate() {
            let first = |text: &str| if index == 0 { text.to_owned() } else { String::new() };
            let handle = rule.handle.map_or_else(String::new, |handle| handle.to_string());
            let why = if rule.foreign { "foreign".to_owned() } else { rule.why.clone().unwrap_or_default() };
            rows.push(vec![
                first(self.hook),
                first(&packet),
                rule.table.clone(),
                rule.chain.clone(),
                handle,
                rule.text.clone(),
                why,
                rule.verdict.clone(),
            ]);
        }
    }
}

impl LiveRuleReport {
    fn of(rule: &LiveRule) -> Self {
        let LiveRule { place, text, why, verdict, read } = rule;
        let table = format!("{} {}", place.family, place.table).trim().to_owned();
        let verdict = match verdict {
            Some(act) => act.to_string(),
            None if *read => String::new(),
            None => "unknown from here".to_owned(),
        };
        // Without a table it is the kernel's own routing.
        let foreign = why.is_none() && !place.table.is_empty();
        let (text, why) = (text.clone(), why.clone());
        Self {
            table,
            chain: place.chain.clone(),
            handle: place.handle,
            text,
            why,
            foreign,
            verdict,
            read: *read,
        }
    }
}

impl EndReport {
    /// What is not looked at may take the packet anywhere.
    fn of(path: &LivePath, not_looked_at: &[String]) -> Self {
        let unless_gap = |end: Self| match not_looked_at.first() {
            Some(gap) => Self {
                action: "unknown",
                port: None,
                text: format!("unknown: {}, but not everything could be looked at: {gap}", end.text),
            },
            None => end,
        };
        match &path.end {
            LiveEnd::Captured { port } => unless_gap(Self::captured(*port)),
            LiveEnd::Bypass { by } => Self::by("bypass", "passes by the proxy because of", by),
            LiveEnd::Dropped { by } => Self::by("dropped", "dropped by", by),
            LiveEnd::Delivered => Self {
                action: "delivered",
                port: None,
                text: "goes where it was sent: no rule is for it".to_owned(),
            },
            LiveEnd::Unknown { by } => Self::by("unknown", "unknown from here, because of", by),
        }
    }

    fn captured(port: u16) -> Self {
        Self { action: "captured", port: Some(port), text: format!("captured by the proxy at {port}") }
    }

    fn by(action: &'static str, words: &str, by: &LiveRule) -> Self {
        let rule = LiveRuleReport::of(by);
        let place = [&*rule.table, &*rule.chain].join(" ").trim().to_owned();
        let place = if place.is_empty() { String::new() } else { format!(" of {place}") };
        let handle = rule.handle.map_or_else(String::new, |handle| format!(", handle {handle}"));
        let why = match (&rule.why, rule.foreign) {
            (_, true) => ", which is foreign".to_owned(),
            (Some(why), _) if !why.is_empty() => format!(": {why}"),
            _ => String::new(),
        };
        Self { action, port: None, text: format!("{words} {:?}{place}{handle}{why}", rule.text) }
    }

    fn colour(&self) -> Colour {
        match self.action {
            "captured" => Colour::Green,
            "dropped" => Colour::Red,
            _ => Colour::Yellow,
        }
    }
}

impl PlanReport {
    fn of(captured: &Captured, flow: &Flow, kernel: &EndReport) -> Self {
        let way = through_pod(&captured.plan, flow);
        let other = |action, text: &str| EndReport { action, port: None, text: text.to_owned() };
        let verdict = match way.verdict() {
            Verdict::Redirect { port } | Verdict::Tproxy { port } => EndReport::captured(port),
            Verdict::Pass | Verdict::Snat { .. } => other("delivered", "it passes by the proxy"),
            Verdict::Drop | Verdict::Reject(_) => other("dropped", "it is dropped"),
        };
        // A rule that lets a packet pass, and none at all, are one answer.
        let is_passed = |action: &str| matches!(action, "bypass" | "delivered");
        let same = (verdict.action, verdict.port) == (kernel.action, kernel.port)
            || (is_passed(verdict.action) && is_passed(kernel.action));
        Self { verdict, differs: !same }
    }
}
