//! `policy eval`: the verdicts of a file of cases, compared with those of the evaluator, and with what compiled rules do.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use policy::cases::{CaseFile, RulesReport};
use ruleset::Backend;

use crate::output::{VerbAnswer, one_line};

const EXAMPLES: &str = "\
Examples:
  # Is each verdict of the file the one that its objects mean?
  cnictl policy eval --cases cases.json

  # And do the rules of the pods' policies, as iptables gets them, do the same?
  cnictl policy eval --cases cases.json --compiled iptables

Exit codes: 0 each verdict is as the file says
            1 one is not, or the file cannot be used
            2 wrong command line";

/// Compare the verdicts in a file of cases with what the policies mean
///
/// The file has clusters of objects, as the API has them, and cases: policies, changes, and which connections are allowed then. Each difference
/// is printed with the case, the connection, what the file says, and the verdict with its reason. No cluster is asked.
///
/// With --compiled the policies become rules, too, as each pod gets them in its own network namespace, and what these do to each connection is compared
/// with the file. Rules there cannot tell apart all that the policies do: such a difference is printed as known, with why, and is no failure.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EvalArgs {
    /// The file, in JSON; - reads standard input
    #[arg(long, value_name = "FILE")]
    cases: PathBuf,
    /// Compare what the rules for this backend do, too
    #[arg(long, value_name = "BACKEND")]
    compiled: Option<CompiledFor>,
    /// Where these rules are
    #[arg(long, value_name = "POINT", requires = "compiled", default_value = "pod")]
    point: Point,
}

/// Where rules of policies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Point {
    /// In the network namespaces of pods
    Pod,
    /// In those of nodes
    Node,
}

/// The backend that rules are for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompiledFor {
    Nftables,
    Iptables,
}

/// The largest file that is read, in bytes.
const LARGEST: usize = 64 << 20;

impl EvalArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let name = self.cases.display();
        let text = read(&self.cases).with_context(|| format!("read {name}"))?;
        let file = CaseFile::parse(&text).with_context(|| format!("use {name}"))?;
        let report = file.compare(policy::verdict).with_context(|| format!("use {name}"))?;
        let mut out = String::new();
        for difference in &report.differences {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{}", one_line(&difference.to_string()));
        }
        let looked_at = format!("cases: {}, cells: {}, flows: {}", report.cases, report.cells, report.flows);
        let mut count = report.differences.len();
        let mut summary = format!("{looked_at}; each verdict is as the file says\n");
        if let Some(backend) = self.compiled.map(CompiledFor::backend) {
            let (rules, place) = match self.point {
                Point::Pod => (file.compare_rules(backend), "pods"),
                Point::Node => (file.compare_node_rules(backend), "nodes"),
            };
            let rules = rules.with_context(|| format!("use {name}"))?;
            count += rules.differences.len();
            let _ = writeln!(
                summary,
                "rules for {backend} in {place}, connections: {}; each does as the file says{}",
                rules.connections,
                if rules.known.is_empty() { "" } else { ", or why not is known" }
            );
            tell(&rules, backend, &mut out);
        }
        if count == 0 {
            return Ok(VerbAnswer::text(out + &summary));
        }
        let differ =
            if count == 1 { "1 verdict differs".to_owned() } else { format!("{count} verdicts differ") };
        Ok(VerbAnswer::failed(out, format!("{differ} from the file ({looked_at})")))
    }
}

impl CompiledFor {
    fn backend(self) -> Backend {
        match self {
            Self::Nftables => Backend::Nftables,
            Self::Iptables => Backend::Iptables,
        }
    }
}

/// Differences of rules, those that are known first.
fn tell(rules: &RulesReport, backend: Backend, out: &mut String) {
    for (difference, why) in &rules.known {
        let _ = writeln!(out, "known: rules for {backend}: {}", one_line(&format!("{difference}; {why}")));
    }
    for difference in &rules.differences {
        let _ = writeln!(out, "rules for {backend}: {}", one_line(&difference.to_string()));
    }
}

/// The text of a file, or of standard input.
fn read(path: &Path) -> Result<String> {
    let stream: &mut dyn Read =
        if path == Path::new("-") { &mut io::stdin().lock() } else { &mut File::open(path)? };
    let mut text = String::new();
    stream.take(LARGEST as u64 + 1).read_to_string(&mut text)?;
    if text.len() > LARGEST {
        bail!("it has more than {} MiB; give fewer cases in one file", LARGEST >> 20);
    }
    Ok(text)
}
