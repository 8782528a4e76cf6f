//! `render`: the plan of a pod as text.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use capture::ambient::OWNER;
use clap::ValueEnum;
use ruleset::eval;
use ruleset::{
    ALL_BITS, Backend, Element, Families, Family, Key, Plan, Routing, Ruleset, TableKind, Transaction,
    iptables, nft,
};
use serde::Serialize;

use crate::output::{Format, VerbAnswer, one_line, structured};
use crate::rules::{RuleReport, describe};
use crate::subject::{AboutPod, Captured, PodOutcome, PodSubject, ProbeMember, SubjectArgs};

/// Exit code for a pod that has no plan.
const NOT_CAPTURED: u8 = 3;

const EXAMPLES: &str = "\
Examples:
  # As nft text, each rule with its reason as comment
  cnictl render web.yaml

  # As input of ip6tables-restore --noflush
  cnictl render web.yaml --backend iptables --ipv6 --family ipv6

  # One of several pods of a file, by a configuration other than that of this node
  cnictl render all.yaml --pod shop/web --conf 10-net.conflist

  # A pod of ambient mode from standard input: what the agent loads in the pod's namespace, and in the node's
  kubectl get pod web -o yaml | cnictl render - --namespace-labels istio.io/dataplane-mode=ambient
  kubectl get pod web -o yaml | cnictl render - --namespace-labels istio.io/dataplane-mode=ambient --place node

Exit codes: 0 rendered, 1 failed, 2 wrong command line, 3 the pod is not captured (the reason is printed as a comment)";

/// Print the plan of a pod as nft or iptables-restore text
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RenderArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Only this family; iptables-restore takes one at a time
    #[arg(long, value_enum)]
    family: Option<FamilyName>,
    /// Whose rules: those of the pod's namespace or, for a pod of ambient mode, of the node's own; data has both
    #[arg(long, value_enum, default_value_t = Place::Pod)]
    place: Place,
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
enum Place {
    Pod,
    Node,
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
    #[serde(flatten)]
    about: AboutPod,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PlanReport>,
    /// What is in the node's own namespace, of a pod in ambient mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeReport>,
    assumed: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PlanReport {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    native_sidecar: Option<bool>,
    backend: String,
    ipv6: bool,
    warnings: Vec<String>,
    /// Commands of `ip` that do what the steps before the rules do.
    routing: Vec<String>,
    rules: Vec<FamilyRule>,
}

#[derive(Debug, Serialize)]
struct NodeReport {
    /// The pod's addresses in the node's sets.
    members: Vec<ProbeMember>,
    rules: Vec<FamilyRule>,
}

#[derive(Debug, Serialize)]
struct FamilyRule {
    families: &'static str,
    #[serde(flatten)]
    rule: RuleReport,
}

impl RenderArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let subject = self.subject.subject(self.family == Some(FamilyName::Ipv6))?;
        let exit = if matches!(subject.outcome, PodOutcome::Skipped(_)) { NOT_CAPTURED } else { 0 };
        let text = match self.output {
            Output::Text => self.text(&subject)?,
            Output::Json => structured(Format::Json, &self.data(&subject)?)?,
            Output::Yaml => structured(Format::Yaml, &self.data(&subject)?)?,
        };
        Ok(VerbAnswer { text, problem: None, exit })
    }

    fn wants(&self, family: Family) -> bool {
        match self.family {
            None => true,
            Some(FamilyName::Ipv4) => family == Family::V4,
            Some(FamilyName::Ipv6) => family == Family::V6,
        }
    }

    fn text(&self, subject: &PodSubject) -> Result<String> {
        // Read by nft and iptables-restore: what a manifest says stays in its comment.
        let mut comments = Vec::new();
        match &subject.outcome {
            PodOutcome::Skipped(skip) => {
                comments.push(format!("pod {}: not captured, no rules", subject.name));
                comments.push(format!("{}: {}", skip.reason.name(), skip.text()));
            }
            PodOutcome::Captured(captured) => {
                comments.push(format!("pod {}: {}", subject.name, captured.summary()));
                comments.extend(captured.warnings.iter().map(|warning| format!("warning: {warning}")));
            }
        }
        comments.extend(subject.assumed.iter().map(|assumed| format!("assumed: {assumed}")));
        let mut out: String = comments.iter().map(|text| format!("# {}\n", one_line(text))).collect();
        if let PodOutcome::Captured(captured) = &subject.outcome {
            out.push_str(&self.rules_text(captured)?);
        }
        Ok(out)
    }

    /// The rules of one place, in the form that its backend loads.
    fn rules_text(&self, captured: &Captured) -> Result<String> {
        let mut out = String::new();
        let node = match (self.place, captured.node()) {
            (Place::Node, None) => {
                bail!("the pod has a sidecar: there is nothing for it in the node's own namespace")
            }
            (Place::Node, node) => node,
            (Place::Pod, Some(_)) => {
                let _ = writeln!(out, "# the node's own namespace has rules for the pod, too: --place node");
                None
            }
            (Place::Pod, None) => None,
        };
        let plan = node.map_or(&captured.plan, |node| &node.plan);
        for command in self.routing(plan) {
            let _ = writeln!(out, "# first: {command}");
        }
        let layers = self.layers(plan);
        match plan.backend {
            Backend::Nftables => {
                let _ = writeln!(out, "# load with: nft -f -");
                out.push_str(&nft::render(&Transaction::Replace(&layers)));
                for member in node.map_or(&[][..], |node| &node.members) {
                    let ProbeMember { set, address, uid } = member;
                    let table = TableKind::Nat.nft_table(OWNER);
                    let element = Element { comment: uid.clone(), ..Key::from(*address).into() };
                    let _ = writeln!(
                        out,
                        "add element inet {table} {set} {{ {} }}",
                        nft::render_element(&element)
                    );
                }
            }
            Backend::Iptables => {
                for command in node.into_iter().flat_map(|node| ipsets(&layers, &node.members)) {
                    let _ = writeln!(out, "# first: {command}");
                }
                let has = |family: &Family| layers.iter().any(|layer| layer.families().contains(family));
                let families = [Family::V4, Family::V6].into_iter().filter(has);
                for family in families.filter(|family| self.wants(*family)) {
                    let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
                    let _ = writeln!(out, "# load with: {program}-restore --noflush");
                    out.push_str(&with_reasons(&layers, family)?);
                }
            }
        }
        Ok(out)
    }

    fn data(&self, subject: &PodSubject) -> Result<Rendered> {
        let (mut plan, mut node) = (None, None);
        let about = match &subject.outcome {
            PodOutcome::Skipped(skip) => AboutPod::skipped(&subject.name, skip),
            PodOutcome::Captured(captured) => {
                let rules = |plan: &Plan| rules(&self.layers(plan), plan.backend);
                plan = Some(PlanReport {
                    mode: captured.mode(),
                    native_sidecar: captured.native_sidecar(),
                    backend: captured.facts.backend.to_string(),
                    ipv6: captured.facts.ipv6,
                    warnings: captured.warnings.clone(),
                    routing: self.routing(&captured.plan),
                    rules: rules(&captured.plan),
                });
                if let Some(host) = captured.node() {
                    node = Some(NodeReport { members: host.members.clone(), rules: rules(&host.plan) });
                }
                AboutPod::planned(&subject.name, true)
            }
        };
        Ok(Rendered { about, plan, node, assumed: subject.assumed.clone() })
    }

    /// The planned rules, without those that look at no packet of the wanted family.
    fn layers(&self, plan: &Plan) -> Vec<Ruleset> {
        let mut layers = plan.layers.clone();
        let tables = layers.iter_mut().flat_map(|layer| &mut layer.tables);
        for chain in tables.flat_map(|table| &mut table.chains) {
            let wanted = |families: Families| match families {
                Families::Both => true,
                Families::Only(family) => self.wants(family),
            };
            chain.leading = chain.rules.iter().take(chain.leading).filter(|r| wanted(r.families)).count();
            chain.rules.retain(|rule| wanted(rule.families));
        }
        layers
    }

    fn routing(&self, plan: &Plan) -> Vec<String> {
        let number = |family: Family| if family == Family::V4 { 4 } else { 6 };
        let steps = plan.routing.iter();
        steps
            .filter_map(|step| match *step {
                Routing::LoopbackAddress(address) => {
                    self.wants(Family::V6).then(|| format!("ip -6 address replace {address}/128 dev lo"))
                }
                Routing::Rule { family, mark, mask, table, priority } => self.wants(family).then(|| {
                    let number = number(family);
                    let mask = if mask == ALL_BITS { String::new() } else { format!("/{mask:#x}") };
                    format!("ip -{number} rule add fwmark {mark}{mask} lookup {table} priority {priority}")
                }),
                Routing::LocalRoute { family, table } => self.wants(family).then(|| {
                    format!("ip -{} route replace local default dev lo table {table}", number(family))
                }),
            })
            .collect()
    }
}

/// Commands that make the sets of the rules, which have to be there first, and put the pod's addresses into them.
fn ipsets(layers: &[Ruleset], members: &[ProbeMember]) -> Vec<String> {
    let sets = iptables::ipset::render_sets(layers).into_iter().map(|line| format!("ipset {line} -exist"));
    let members = members.iter().map(|ProbeMember { set, address, uid }| {
        let comment = if uid.is_empty() { String::new() } else { format!(" comment {uid}") };
        format!("ipset add {set} {address}{comment} -exist")
    });
    sets.chain(members).collect()
}

/// The text for iptables-restore, each rule after a comment with its reason.
fn with_reasons(layers: &[Ruleset], family: Family) -> Result<String> {
    let text = iptables::render(layers, family)?;
    // In the order of the text: tables by name, then as planned.
    let of_family = layers.iter().filter(|layer| layer.families().contains(&family));
    let mut tables: Vec<_> = of_family.flat_map(|layer| &layer.tables).collect();
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

fn rules(layers: &[Ruleset], backend: Backend) -> Vec<FamilyRule> {
    let tables = layers.iter().flat_map(|layer| layer.tables.iter().map(move |table| (&*layer.owner, table)));
    let chains =
        tables.flat_map(|(owner, table)| table.chains.iter().map(move |chain| (owner, table.kind, chain)));
    chains
        .flat_map(|(owner, table, chain)| {
            chain.rules.iter().enumerate().map(move |(index, rule)| FamilyRule {
                families: match rule.families {
                    Families::Both => "both",
                    Families::Only(Family::V4) => "ipv4",
                    Families::Only(Family::V6) => "ipv6",
                },
                rule: describe(backend, &eval::RulePlace { owner, table, chain, index, rule }),
            })
        })
        .collect()
}
