//! Processes and statistics.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Durations of one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub(crate) fn extend(&mut self, others: &Self) {
        self.0.extend_from_slice(&others.0);
    }

    /// The sample that a share of all, from 0 to 1, does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get(((last as f64) * share).round() as usize).copied().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Runs a program to its end and returns the time from its start; its output is thrown away.
pub(crate) fn time(command: &mut Command, input: &[u8]) -> Result<Duration> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn()?;
    feed(&mut child, input);
    let status = child.wait()?;
    let took = start.elapsed();
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(took)
}

/// The largest resident set of a program in KiB (`ru_maxrss` of getrusage(2)).
#[allow(unsafe_code)]
pub(crate) fn peak_rss_kib(command: &mut Command, input: &[u8]) -> Result<u64> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure does nothing. It makes the standard library fork: a child that shares our memory until it executes the
    // program is counted with all of ours.
    unsafe { command.pre_exec(|| Ok(())) };
    let mut child = command.spawn()?;
    feed(&mut child, input);
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let pid = libc::pid_t::try_from(child.id())?;
    // SAFETY: both pointers lead to values of the types that wait4(2) writes, and live longer than the call.
    let collected = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
    let status: ExitStatus = std::os::unix::process::ExitStatusExt::from_raw(status);
    if collected != pid || !status.success() {
        bail!("{command:?} ended with {status}");
    }
    // SAFETY: all-zero is a valid rusage, which consists of numbers only.
    let usage = unsafe { usage.assume_init() };
    Ok(u64::try_from(usage.ru_maxrss)?)
}

fn feed(child: &mut Child, input: &[u8]) {
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read it is the no-op.
        let _ = stdin.write_all(input);
    }
}
