//! `policy eval`: the verdicts of a file of cases, compared with those of the evaluator.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use policy::cases::CaseFile;

use crate::output::{VerbAnswer, one_line};

const EXAMPLES: &str = "\
Examples:
  # Is each verdict of the file the one that its objects mean?
  cnictl policy eval --cases cases.json

Exit codes: 0 each verdict is as the file says
            1 one is not, or the file cannot be used
            2 wrong command line";

/// Compare the verdicts in a file of cases with what the policies mean
///
/// The file has clusters of objects, as the API has them, and cases: policies, changes, and which connections are allowed then. Each difference
/// is printed with the case, the connection, what the file says, and the verdict with its reason. No cluster is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EvalArgs {
    /// The file, in JSON; - reads standard input
    #[arg(long, value_name = "FILE")]
    cases: PathBuf,
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
        if report.differences.is_empty() {
            return Ok(VerbAnswer::text(format!("{looked_at}; each verdict is as the file says\n")));
        }
        let differ = match report.differences.len() {
            1 => "1 verdict differs".to_owned(),
            several => format!("{several} verdicts differ"),
        };
        Ok(VerbAnswer::failed(out, format!("{differ} from the file ({looked_at})")))
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
