//! `audit tail`: the last packets that network policies have denied, as the agent keeps them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use rundir::denials::{DenialEnd, DenialRecord, DenialsReport};

use crate::chain::seconds;
use crate::configuration::{AGENT_PATIENCE, ConfigurationArgs};
use crate::output::{VerbAnswer, columns, print_now};
use crate::pods::{NOTHING, OUT_OF_TIME};

/// Pause between two questions where new records are followed.
const PAUSE: Duration = Duration::from_millis(500);
const HEADS: [&str; 8] = ["TIME", "VERDICT", "FROM", "TO", "PROTOCOL", "DIRECTION", "POLICIES", "PACKETS"];

const EXAMPLES: &str = "\
Examples:
  # What was denied last, by which policies?
  cnictl audit tail

  # Every denial from now on, a line of JSON each
  cnictl audit tail -f -n 0 -o json

Exit codes: 0 shown, 1 failed, 2 wrong command line, 3 nothing was denied, 124 the time was over";

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TailFormat {
    /// For people
    Table,
    /// For programs: a line for each record
    Json,
}

/// Show the last packets that network policies have denied on this node
///
/// The agent keeps the last 4096 records in memory. A record is of the packets of one connection within a moment; in PACKETS, +N are those that the same
/// policies denied meanwhile and that were not logged. AUDIT is the verdict on what passed because the policies that would deny it are only tried out.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TailArgs {
    /// So many records, the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: usize,
    /// Go on and print new ones
    #[arg(short, long)]
    follow: bool,
    /// How records are written
    #[arg(short, long, value_enum, default_value_t = TailFormat::Table)]
    output: TailFormat,
    /// End after this many seconds, with exit code 124
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "follow")]
    timeout: Option<Duration>,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

impl TailArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let configuration = self.configuration.load()?;
        let agent = configuration.agent();
        let ask = |after| -> Result<DenialsReport> {
            agent.denials(after, AGENT_PATIENCE).context("what was denied is in the agent's memory only")
        };
        let report = ask(0)?;
        let records = &report.records[report.records.len().saturating_sub(self.lines)..];
        let text = self.text(records, true)?;
        if !self.follow {
            let problem = report.deaf.map(|why| format!("the agent does not hear what is denied: {why}"));
            let exit = if records.is_empty() { NOTHING } else { 0 };
            return Ok(VerbAnswer { text, problem, exit });
        }
        let end = self.timeout.map(|timeout| Instant::now() + timeout);
        let (mut run, mut last) = (report.run, report.records.last().map_or(0, |record| record.seq));
        let mut has_reader = print_now(&text)?;
        while has_reader {
            let left = end.map_or(PAUSE, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(VerbAnswer { exit: OUT_OF_TIME, ..VerbAnswer::text(String::new()) });
            }
            std::thread::sleep(left.min(PAUSE));
            let mut report = ask(last)?;
            if report.run != run {
                // Another agent numbers its own.
                report = ask(0)?;
                run = report.run;
            }
            last = report.records.last().map_or(last, |record| record.seq);
            has_reader = print_now(&self.text(&report.records, false)?)?;
        }
        Ok(VerbAnswer::text(String::new()))
    }

    fn text(&self, records: &[DenialRecord], with_heads: bool) -> Result<String> {
        if self.output == TailFormat::Json {
            let line = |record| Ok(serde_json::to_string(record)? + "\n");
            return records.iter().map(line).collect();
        }
        if records.is_empty() {
            return Ok(String::new());
        }
        let heads = with_heads.then(|| HEADS.map(str::to_owned).to_vec());
        Ok(columns(&heads.into_iter().chain(records.iter().map(row)).collect::<Vec<_>>()))
    }
}

fn row(record: &DenialRecord) -> Vec<String> {
    let told = |end: &Option<DenialEnd>, with_port| match end {
        Some(end) if with_port => end.told(),
        Some(end) => DenialEnd { port: None, ..end.clone() }.told(),
        None => "-".to_owned(),
    };
    let packets = match (record.packets, record.suppressed) {
        (packets, 0) => packets.to_string(),
        (packets, more) => format!("{packets}+{more}"),
    };
    let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    vec![
        record.time.clone(),
        record.verdict.clone(),
        told(&record.source, false),
        told(&record.destination, true),
        or_none(&record.protocol),
        record.traffic_direction.to_ascii_lowercase(),
        or_none(&record.policy.selecting.join(",")),
        packets,
    ]
}
