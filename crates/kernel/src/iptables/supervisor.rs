//! A process that finishes, or takes back, what its parent began, also when the parent is killed.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use netns::Lock;

use super::child;
use super::error::Error;
use super::job::{IptablesJob, JobReport};
use super::wire;

/// The first argument that turns the program into a supervisor. No argument that a user would give.
const MODE: &str = "--supervise-iptables-job";
/// What the supervisor may need besides its runs.
const MARGIN: Duration = Duration::from_secs(5);

/// Proof that `main` of this program begins with [`run_supervisor_if_asked`], so that it can be started again as a supervisor.
#[derive(Debug, Clone, Copy)]
pub struct Supervisor(());

/// Must be the first thing that `main` does. In the hidden mode it does the job that it was started for and ends the process;
/// otherwise it returns at once.
///
/// The job comes as a memory file on standard input, complete from the start. The report goes to a pipe on standard output when all
/// is done, so that nothing breaks with it when the parent is dead.
#[must_use]
pub fn run_supervisor_if_asked() -> Supervisor {
    if std::env::args_os().nth(1).is_some_and(|argument| argument.as_bytes() == MODE.as_bytes()) {
        let done = supervise().is_some();
        std::process::exit(i32::from(!done));
    }
    Supervisor(())
}

/// In the supervisor.
fn supervise() -> Option<()> {
    // Not with the caller's group, session or terminal. It fails only for the leader of a group, which is out of reach already.
    let _ = rustix::process::setsid();
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned().ok()?);
    let output = File::from(std::io::stdout().as_fd().try_clone_to_owned().ok()?);
    let lock = std::io::stderr().as_fd().try_clone_to_owned().ok();
    let job = wire::decode_job(&child::read_all(&input).ok()?)?;
    let report = job.execute(lock);
    std::io::Write::write_all(&mut &output, &wire::encode_report(&report)).ok()
}

/// In the parent: starts the supervisor in the calling thread's namespace and waits for its report.
pub(super) fn delegate(job: &IptablesJob, lock: Option<&Lock>) -> Result<JobReport, Error> {
    let failed = |cause: std::io::Error| Error::Supervisor { cause: cause.to_string() };
    let input = child::memory_file(&wire::encode_job(job)).map_err(failed)?;
    let (output, input_of_output) = std::io::pipe().map_err(failed)?;
    let lock = match lock {
        Some(lock) => Stdio::from(lock.share().map_err(failed)?),
        None => Stdio::null(),
    };
    let mut supervisor = Command::new("/proc/self/exe")
        .arg(MODE)
        .env_clear()
        .stdin(input)
        .stdout(input_of_output)
        .stderr(lock)
        .spawn()
        .map_err(failed)?;
    // Each run, and each taken back by two.
    let runs = u32::try_from(job.runs.len()).unwrap_or(u32::MAX).saturating_mul(3);
    let limit = job.timeout.saturating_mul(runs).saturating_add(MARGIN);
    let answer = child::read_until(output, limit).map_err(failed)?;
    if answer.is_none() {
        supervisor.kill().map_err(failed)?;
    }
    // The end of its mount namespace takes the kernel some milliseconds more, for which nobody needs to wait.
    let reaper = std::thread::Builder::new().name("iptables-reaper".to_owned());
    // Without the thread it is a zombie until this process ends, which is no reason to fail.
    drop(reaper.spawn(move || supervisor.wait()));
    let Some(answer) = answer else {
        let cause = format!("it did not end within {} s and was killed", limit.as_secs());
        return Err(Error::Supervisor { cause });
    };
    wire::decode_report(&answer)
        .ok_or_else(|| Error::Supervisor { cause: "it ended without a report".to_owned() })
}
