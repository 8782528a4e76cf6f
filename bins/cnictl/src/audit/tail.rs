//! `audit tail`: the last packets that network policies have denied: from the audit file, else as the agent keeps them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use audit::AuditEvent;
use rundir::denials::{DenialRecord, DenialsReport};

use super::files::{EventFormat, FileArgs, Follower, ReadEvent, text};
use crate::chain::seconds;
use crate::configuration::{AGENT_PATIENCE, ConfigurationArgs};
use crate::output::{VerbAnswer, print_now};
use crate::pods::{NOTHING, OUT_OF_TIME};

/// Pause between two looks where new lines are followed.
const PAUSE: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  # What was denied last, by which policies?
  cnictl audit tail

  # Every denial from now on, a line of JSON each
  cnictl audit tail -f -n 0 -o json

Exit codes: 0 shown, 1 failed, 2 wrong command line, 3 nothing was denied, 124 the time was over";

/// Show the last packets that network policies have denied on this node
///
/// Where the agent writes an audit file, its last lines are shown, also while no agent runs. Else the agent is asked, which keeps the last 4096 records in memory. A
/// record is of the packets of one connection within a moment; in PACKETS, +N are those that the same policies denied meanwhile and that were not logged. AUDIT is
/// the verdict on what passed because the policies that would deny it are only tried out.
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
    #[arg(short, long, value_enum, default_value_t = EventFormat::Table)]
    output: EventFormat,
    /// End after this many seconds, with exit code 124
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "follow")]
    timeout: Option<Duration>,
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

impl TailArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        match self.file.is_named() || self.file.path().exists() {
            true => self.of_file(),
            false => self.of_agent(),
        }
    }

    fn of_file(&self) -> Result<VerbAnswer> {
        // Before the lines are read: none between the two is missing.
        let mut follower = Follower::new(self.file.path());
        let mut last = std::collections::VecDeque::new();
        let problem = self.file.read(|one| {
            last.push_back(one);
            if last.len() > self.lines {
                last.pop_front();
            }
        })?;
        let mut seq = last.back().map_or(0, |one: &ReadEvent| one.event.seq);
        let exit = if last.is_empty() { NOTHING } else { 0 };
        let text = text(self.output, last.make_contiguous(), true);
        self.go_on(VerbAnswer { text, problem, exit }, || {
            let mut newer = follower.next()?;
            newer.retain(|one| one.event.seq > seq);
            seq = newer.last().map_or(seq, |one| one.event.seq);
            Ok(newer)
        })
    }

    fn of_agent(&self) -> Result<VerbAnswer> {
        let configuration = self.configuration.load()?;
        let agent = configuration.agent();
        let ask = |after| -> Result<DenialsReport> {
            let help =
                "there is no audit file (AUDIT_LOG), and what was denied is in the agent's memory only";
            agent.denials(after, AGENT_PATIENCE).context(help)
        };
        let report = ask(0)?;
        let records = &report.records[report.records.len().saturating_sub(self.lines)..];
        let exit = if records.is_empty() { NOTHING } else { 0 };
        let problem = report.deaf.map(|why| format!("the agent does not hear what is denied: {why}"));
        let answer = VerbAnswer { text: text(self.output, &events(records), true), problem, exit };
        let (mut run, mut last) = (report.run, report.records.last().map_or(0, |record| record.seq));
        self.go_on(answer, || {
            let mut report = ask(last)?;
            if report.run != run {
                // Another agent numbers its own.
                report = ask(0)?;
                run = report.run;
            }
            last = report.records.last().map_or(last, |record| record.seq);
            Ok(events(&report.records))
        })
    }

    /// The answer, and what comes after it where that is asked for.
    fn go_on(
        &self,
        answer: VerbAnswer,
        mut next: impl FnMut() -> Result<Vec<ReadEvent>>,
    ) -> Result<VerbAnswer> {
        if !self.follow {
            return Ok(answer);
        }
        let end = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut has_reader = print_now(&answer.text)?;
        while has_reader {
            let left = end.map_or(PAUSE, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(VerbAnswer { exit: OUT_OF_TIME, ..VerbAnswer::text(String::new()) });
            }
            std::thread::sleep(left.min(PAUSE));
            has_reader = print_now(&text(self.output, &next()?, false))?;
        }
        Ok(VerbAnswer::text(String::new()))
    }
}

/// Records of the agent's memory in the form of lines, without a place in a chain.
fn events(records: &[DenialRecord]) -> Vec<ReadEvent> {
    let of = |record: &DenialRecord| {
        let event = AuditEvent::of(record, None);
        ReadEvent { text: event.body(), event }
    };
    records.iter().map(of).collect()
}
