//! `render`: the plan of a pod as text.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use capture::Skip;
use clap::ValueEnum;
use ruleset::{ALL_BITS, Backend, Families, Family, Ruleset, Step, Table, Transaction, iptables, nft};
use serde::Serialize;

use crate::output::{Answer, Format, one_line, structured};
use crate::rules::{RuleReport, describe};
use crate::subject::{Captured, PodName, Subject, SubjectArgs};

/// Exit code for a pod that has no plan.
const NOT_CAPTURED: u8 = 3;

const EXAMPLES: &str = "\
Examples:
  # As nft text, each rule with its reason as comment
  cnictl render web.yaml

  # As input of ip6tables-restore --noflush
  cnictl render web.yaml --backend iptables --ipv6 --family ipv6

  # One of several pods of a file, with the configuration of this node
  cnictl render all.yaml --pod shop/web --conf /etc/cni/net.d/10-net.conflist

Exit codes: 0 rendered, 1 failed, 2 wrong command line, 3 the pod is not captured (the reason is printed as a comment)";

/// Print the plan of a pod as nft or iptables-restore text
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Only this family; iptables-restore takes one at a time
    #[arg(long, value_enum)]
    family: Option<FamilyName>,
    /// Text to load, or the same as data
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FamilyName {
    Ipv4,
    Ipv6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For nft -f or iptables-restore --noflush
    Text,
    /// For programs
    Json,
    /// For programs
    Yaml,
}

/// The plan as data.
#[derive(Debug, Serialize)]
struct Rendered {
    pod: PodName,
    captured: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PlanReport>,
}

#[derive(Debug, Serialize)]
struct PlanReport {
    mode: &'static str,
    native_sidecar: bool,
    backend: String,
    ipv6: bool,
    warnings: Vec<String>,
    /// Commands of `ip` that do what the steps before the rules do.
    routing: Vec<String>,
    rules: Vec<FamilyRule>,
}

#[derive(Debug, Serialize)]
struct FamilyRule {
    families: &'static str,
    #[serde(flatten)]
    rule: RuleReport,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Answer> {
        let subject = self.subject.subject(self.family == Some(FamilyName::Ipv6))?;
        let exit = if matches!(subject, Subject::Skipped { .. }) { NOT_CAPTURED } else { 0 };
        let text = match (self.output, &subject) {
            (Output::Text, Subject::Skipped { pod, skip }) => skipped(pod, skip),
            (Output::Text, Subject::Captured(captured)) => self.text(captured)?,
            (Output::Json, subject) => structured(Format::Json, &self.data(subject))?,
            (Output::Yaml, subject) => structured(Format::Yaml, &self.data(subject))?,
        };
        Ok(Answer { text, problem: None, exit })
    }

    fn wants(&self, family: Family) -> bool {
        match self.family {
            None => true,
            Some(FamilyName::Ipv4) => family == Family::V4,
            Some(FamilyName::Ipv6) => family == Family::V6,
        }
    }

    fn text(&self, captured: &Captured) -> Result<String> {
        // Read by nft and iptables-restore: what a manifest says stays in its comment.
        let mut out = one_line(&format!("# pod {}: {}", captured.pod, captured.summary())) + "\n";
        for warning in &captured.warnings {
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(out, "# warning: {}", one_line(&warning.to_string()));
        }
        for command in self.routing(captured) {
            let _ = writeln!(out, "# first: {command}");
        }
        let ruleset = self.ruleset(captured)?;
        match captured.facts.backend {
            Backend::Nftables => {
                let _ = writeln!(out, "# load with: nft -f -");
                out.push_str(&nft::render(&Transaction::Replace(&ruleset)));
            }
            Backend::Iptables => {
                for &family in ruleset.families().iter().filter(|family| self.wants(**family)) {
                    let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
                    let _ = writeln!(out, "# load with: {program}-restore --noflush");
                    out.push_str(&with_reasons(&ruleset, family)?);
                }
            }
        }
        Ok(out)
    }

    fn data(&self, subject: &Subject) -> Rendered {
        match subject {
            Subject::Skipped { pod, skip } => Rendered {
                pod: pod.clone(),
                captured: false,
                reason: Some(skip.reason.name()),
                detail: Some(skip.detail.clone()),
                plan: None,
            },
            Subject::Captured(captured) => Rendered {
                pod: captured.pod.clone(),
                captured: true,
                reason: None,
                detail: None,
                plan: Some(PlanReport {
                    mode: captured.mode(),
                    native_sidecar: captured.native_sidecar,
                    backend: captured.facts.backend.to_string(),
                    ipv6: captured.facts.ipv6,
                    warnings: captured.warnings.clone(),
                    routing: self.routing(captured),
                    rules: self
                        .ruleset(captured)
                        .map(|r| rules(&r, captured.facts.backend))
                        .unwrap_or_default(),
                }),
            },
        }
    }

    /// The planned rules, without those that look at no packet of the wanted family.
    fn ruleset(&self, captured: &Captured) -> Result<Ruleset> {
        let mut ruleset = captured.plan.ruleset().context("the plan has no rules")?.clone();
        let chains = ruleset.tables.iter_mut().flat_map(|table| &mut table.chains);
        for chain in chains {
            let wanted = |families: Families| match families {
                Families::Both => true,
                Families::Only(family) => self.wants(family),
            };
            chain.leading = chain.rules.iter().take(chain.leading).filter(|r| wanted(r.families)).count();
            chain.rules.retain(|rule| wanted(rule.families));
        }
        Ok(ruleset)
    }

    fn routing(&self, captured: &Captured) -> Vec<String> {
        let number = |family: Family| if family == Family::V4 { 4 } else { 6 };
        let steps = captured.plan.steps.iter();
        steps
            .filter_map(|step| match *step {
                Step::EnsureLoopbackAddress(address) => {
                    self.wants(Family::V6).then(|| format!("ip -6 address replace {address}/128 dev lo"))
                }
                Step::EnsureRule { family, mark, mask, table, priority } => self.wants(family).then(|| {
                    let number = number(family);
                    let mask = if mask == ALL_BITS { String::new() } else { format!("/{mask:#x}") };
                    format!("ip -{number} rule add fwmark {mark}{mask} lookup {table} priority {priority}")
                }),
                Step::EnsureLocalRoute { family, table } => self.wants(family).then(|| {
                    format!("ip -{} route replace local default dev lo table {table}", number(family))
                }),
                Step::Replace(_) => None,
            })
            .collect()
    }
}

fn skipped(pod: &PodName, skip: &Skip) -> String {
    let pod = one_line(&pod.to_string());
    format!(
        "# pod {pod}: not captured, no rules\n# {}: {}\n",
        skip.reason.name(),
        one_line(&skip.detail.to_string())
    )
}

/// The text for iptables-restore, each rule after a comment with its reason.
fn with_reasons(ruleset: &Ruleset, family: Family) -> Result<String> {
    let text = iptables::render(ruleset, family)?;
    // In the order of the text: tables by name, then as planned.
    let mut tables: Vec<&Table> = ruleset.tables.iter().collect();
    tables.sort_by_key(|table| table.kind.name());
    let chains = tables.into_iter().flat_map(|table| &table.chains);
    let mut reasons = chains.flat_map(|chain| iptables::rules(chain, family)).map(|rule| &rule.why);
    let mut out = String::with_capacity(text.len() * 2);
    for line in text.lines() {
        if line.starts_with("-A ") || line.starts_with("-I ") {
            let _ = writeln!(out, "# {}", reasons.next().map_or("", |why| why));
        }
        let _ = writeln!(out, "{line}");
    }
    Ok(out)
}

fn rules(ruleset: &Ruleset, backend: Backend) -> Vec<FamilyRule> {
    let chains = ruleset.tables.iter().flat_map(|table| table.chains.iter().map(move |chain| (table, chain)));
    chains
        .flat_map(|(table, chain)| {
            chain.rules.iter().enumerate().map(move |(index, rule)| FamilyRule {
                families: match rule.families {
                    Families::Both => "both",
                    Families::Only(Family::V4) => "ipv4",
                    Families::Only(Family::V6) => "ipv6",
                },
                rule: describe(ruleset, backend, table.kind, chain, index, rule),
            })
        })
        .collect()
}
