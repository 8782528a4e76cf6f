//! Programs that run on a node beside its containers and come and go during a test.

use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use testkit::eventually;

use crate::machine::only_child;

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
        let started = eventually("nsenter starts a program", START_LIMIT, || {
            let pid = only_child(nsenter.id()).and_then(|pid| Pid::from_raw(pid.cast_signed()));
            match (pid, nsenter.try_wait()?) {
                (None, None) => bail!("there is none"),
                found => Ok(found),
            }
        });
        match started {
            Ok((Some(pid), _)) => Ok(Self { nsenter, pid }),
            Ok((None, status)) => bail!("the program has ended at once: {status:?}"),
            Err(error) => {
                nsenter.kill().ok();
                nsenter.wait().ok();
                Err(error)
            }
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
        let what = format!("process {} ends", self.pid.as_raw_nonzero());
        eventually(&what, limit, || self.nsenter.try_wait()?.context("it goes on"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already; then only nsenter is to be collected.
        let _ = self.signal(Signal::KILL);
        let _ = self.wait(START_LIMIT);
    }
}
