//! containerd 2.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::Runtime;
use crate::libcni::{Attachment, Call, Libcni, List};
use crate::machine::Machine;
use crate::pod::PodSpec;
use crate::sandbox::{Sandbox, Sandboxes};

/// The kubelet's deadline for a sandbox.
const RUN_LIMIT: Duration = Duration::from_secs(240);
/// The kubelet's deadline for the end of one.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// containerd's own for cleaning up after a failure.
const CLEANUP_LIMIT: Duration = Duration::from_secs(60);

/// A containerd 2: it never calls CHECK, GC and VERSION, and deletes by the configuration that is there now.
pub struct Containerd<'a> {
    machine: &'a Machine,
    cni: Libcni<'a>,
    sandboxes: Sandboxes,
}

impl<'a> Containerd<'a> {
    /// One that has just started, on a machine without pods.
    pub fn start(machine: &'a Machine) -> Self {
        Self { machine, cni: machine.libcni(), sandboxes: Sandboxes::default() }
    }

    /// It follows the directory, and uses the first list there.
    fn list(&self) -> Result<List> {
        self.machine.lists().into_iter().next().context("cni plugin not initialized")
    }

    fn del(&self, attachment: &Attachment, limit: Duration) -> Result<()> {
        self.cni.del(&self.list()?, attachment, limit)
    }
}

impl Runtime for Containerd<'_> {
    fn network_not_ready(&self) -> Option<String> {
        self.list().and_then(|list| self.cni.status(&list)).err().map(|error| format!("{error:#}"))
    }

    fn run(&self, pod: &PodSpec) -> Result<String> {
        if pod.host_network {
            return Ok(self.sandboxes.add(Sandbox::new(self.machine, pod, "")?));
        }
        let list = self.list()?;
        let mut sandbox = Sandbox::new(self.machine, pod, &list.name)?;
        match self.cni.add(&list, &sandbox.attachment, RUN_LIMIT) {
            Ok(result) => sandbox.set_addresses(&result),
            Err(error) => {
                let _ = self.del(&sandbox.attachment, CLEANUP_LIMIT);
                sandbox.remove_netns();
                return Err(error)
                    .with_context(|| format!("failed to setup network for sandbox {}", sandbox.id));
            }
        }
        Ok(self.sandboxes.add(sandbox))
    }

    fn stop(&self, sandbox: &str) -> Result<()> {
        let (attachment, host_network) = self.sandboxes.with(sandbox, |sandbox| {
            let mut attachment = sandbox.attachment.clone();
            if sandbox.netns.is_none() {
                attachment.netns.clear();
            }
            (attachment, sandbox.pod.host_network)
        })?;
        if !host_network {
            self.del(&attachment, STOP_LIMIT)?;
        }
        self.sandboxes.with(sandbox, |sandbox| {
            sandbox.stopped = true;
            sandbox.remove_netns();
        })
    }

    fn remove(&self, sandbox: &str) -> Result<()> {
        if !self.sandboxes.with(sandbox, |sandbox| sandbox.stopped)? {
            self.stop(sandbox)?;
        }
        // It stops each once more.
        self.stop(sandbox)?;
        self.sandboxes.remove(sandbox);
        Ok(())
    }

    fn sandboxes(&self) -> &Sandboxes {
        &self.sandboxes
    }

    fn restart(&self) {}

    fn reboot(&self) {
        self.sandboxes.reboot();
    }

    fn take_calls(&self) -> Vec<Call> {
        self.cni.take_calls()
    }
}
