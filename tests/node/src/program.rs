//! Programs that run on a node beside its containers and come and go during a test.

use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::machine::only_child;

const PAUSE: Duration = Duration::from_millis(10);
const START_LIMIT: Duration = Duration::from_secs(10);

/// A program of the host's in the node's namespaces. It is killed when dropped.
#[derive(Debug)]
pub struct Program {
    /// `nsenter`, which waits for the program and ends as it does.
    nsenter: Child,
    pid: Pid,
}

impl Program {
    pub(crate) fn new(mut nsenter: Child) -> Result<Self> {
        let started = Instant::now();
        loop {
            if let Some(pid) = only_child(nsenter.id()).and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                return Ok(Self { nsenter, pid });
            }
            if let Some(status) = nsenter.try_wait()? {
                bail!("the program has ended at once: {status}");
            }
            if started.elapsed() > START_LIMIT {
                nsenter.kill().ok();
                nsenter.wait().ok();
                bail!("nsenter started no program within {START_LIMIT:?}");
            }
            sleep(PAUSE);
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.nsenter.try_wait()? {
            bail!("the program has ended already: {status}");
        }
        kill_process(self.pid, signal).context("signal a program of the node")
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not come within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.nsenter.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > limit {
                bail!("process {} has not ended within {limit:?}", self.pid.as_raw_nonzero());
            }
            sleep(PAUSE);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already; then only nsenter is to be collected.
        let _ = self.signal(Signal::KILL);
        let _ = self.wait(START_LIMIT);
    }
}
