//! `diff`: a pod's plan against what its network namespace holds, as unified text.

use anyhow::{Context as _, Result, bail};
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::{Difference, Kernel, RuleStore};
use netns::Netns;
use ruleset::listed::{ListedChain, ListedRule, ListedTable};
use ruleset::{Backend, Plan};

use super::listed::{attached, chain_text, means_the_same, of_plan, planned};
use super::one::OnePodArgs;
use super::unified::unified;
use crate::output::VerbAnswer;

const EXAMPLES: &str = "\
Examples:
  # What is not as planned in this pod's network namespace?
  cnictl diff shop/web

Lines with - are planned and missing, lines with + are there and not planned.

Exit codes: 0 nothing differs
            1 something does, or the command failed
            2 wrong command line
            3 there is no such pod, or it should not be captured";

/// Compare a pod's plan with what the kernel holds for it, as unified text
///
/// The plan is made from what is decided today; the kernel is read by this program, with or without an agent.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    pod: OnePodArgs,
}

impl DiffArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let looked = match self.pod.look()? {
            Ok(looked) => looked,
            Err(answer) => return Ok(answer),
        };
        let name = looked.report.pod();
        let (Some(place), Some(captured)) = (&looked.place, &looked.captured) else {
            bail!("pod {name} cannot be compared: {}", looked.report.problem);
        };
        let found = Compared::read(&place.netns, &captured.plan)?;
        let text = found.text(&captured.plan, &name.to_string(), &place.how);
        if found.differences.is_empty() {
            return Ok(VerbAnswer::text(text));
        }
        let problem = format!("pod {name} is not as planned: {} differences", found.differences.len());
        Ok(VerbAnswer::failed(text, problem))
    }
}

/// Both sides.
struct Compared {
    planned: Vec<ListedTable>,
    /// Of the kernel's, those that the plan or a difference names.
    found: Vec<ListedTable>,
    differences: Vec<Difference>,
}

/// A line of a listing. Rules are compared by what they mean.
struct Line {
    text: String,
    rule: Option<ListedRule>,
}

impl Compared {
    fn read(netns: &Netns, plan: &Plan) -> Result<Self> {
        let iptables = Iptables::new();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        let store: &dyn RuleStore = match plan.backend {
            Backend::Nftables => &Nftables,
            Backend::Iptables => &iptables,
        };
        let planned = planned(store, plan);
        let (differences, listing) = netns.enter(|inside| {
            let differences =
                kernel.observe(inside, plan).context("compare the network namespace of the pod")?;
            // Without owners nothing is left out as ours.
            let listing = store.others(inside, &[]).context("list the rules of the network namespace")?;
            anyhow::Ok((differences, listing))
        })??;
        let found = of_plan(listing.tables, store, plan, &names_of(&differences));
        Ok(Self { planned, found, differences })
    }

    fn text(&self, plan: &Plan, pod: &str, place: &str) -> String {
        let names = [format!("plan of pod {pod} ({})", plan.backend), format!("kernel at {place}")];
        let (planned, found) = (lines(&self.planned), lines(&self.found));
        let mut text =
            unified([&names[0], &names[1]], &planned, &found, Line::is_like, |line| line.text.clone());
        // Sets, routing and the other backend are no part of the listings.
        for difference in self.differences.iter().filter(|one| !is_in_listing(one)) {
            text += &format!("# {difference}\n");
        }
        text
    }
}

fn is_in_listing(difference: &Difference) -> bool {
    matches!(
        difference,
        Difference::MissingTable { .. }
            | Difference::UnexpectedTable { .. }
            | Difference::MissingChain { .. }
            | Difference::UnexpectedChain { .. }
            | Difference::MissingRule { .. }
            | Difference::UnexpectedRule { .. }
    )
}

/// Names of tables and chains that are there and not planned.
fn names_of(differences: &[Difference]) -> Vec<&str> {
    differences.iter().filter_map(name_of).collect()
}

fn name_of(difference: &Difference) -> Option<&str> {
    match difference {
        Difference::UnexpectedTable { table } => Some(table),
        Difference::UnexpectedChain { chain, .. } => Some(chain),
        _ => None,
    }
}

/// The listing, tables and chains in the order of their names: the kernel's order is that of their making.
fn lines(tables: &[ListedTable]) -> Vec<Line> {
    let mut tables: Vec<&ListedTable> = tables.iter().collect();
    tables.sort_by_key(|table| &table.name);
    let mut lines = Vec::new();
    for table in tables {
        lines.push(Line::of(format!("table {} {{", table.name)));
        let mut chains: Vec<&ListedChain> = table.chains.iter().collect();
        chains.sort_by_key(|chain| &chain.name);
        for chain in chains {
            lines.push(Line::of(format!("  chain {} {{", chain_text(&chain.name, &attached(chain)))));
            lines.extend(
                chain.rules.iter().map(|rule| Line { text: format!("    {rule}"), rule: Some(rule.clone()) }),
            );
            lines.push(Line::of("  }".to_owned()));
        }
        lines.push(Line::of("}".to_owned()));
    }
    lines
}

impl Line {
    fn of(text: String) -> Self {
        Self { text, rule: None }
    }

    fn is_like(&self, other: &Self) -> bool {
        match (&self.rule, &other.rule) {
            (Some(one), Some(other)) => means_the_same(one, other),
            (None, None) => self.text == other.text,
            _ => false,
        }
    }
}
