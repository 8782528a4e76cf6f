//! CRI-O 1.37.

use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Runtime;
use crate::libcni::{Attachment, Call, Libcni, List};
use crate::machine::Machine;
use crate::pod::PodSpec;
use crate::sandbox::{Sandbox, Sandboxes};

/// CRI-O's deadlines for setting a pod's network up, for taking it down, and for GC. Everything else may take as long as it likes.
const RUN_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const GC_LIMIT: Duration = Duration::from_secs(30);

const NO_LIST: &str = "no CNI configuration file. Has your network provider started?";

/// A CRI-O: it checks a pod after its ADD and all pods at its own start, and deletes by the configuration of the ADD.
pub struct CriO<'a> {
    machine: &'a Machine,
    cni: Libcni<'a>,
    sandboxes: Sandboxes,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The lists of which every plugin is there and knows the version.
    lists: Vec<List>,
    /// By what a change of the directories is seen.
    seen: Vec<(std::ffi::OsString, u64, i64)>,
    /// Whether STATUS has succeeded once; it is not asked again.
    ready: bool,
}

impl<'a> CriO<'a> {
    /// One that has just started, on a machine without pods.
    pub fn start(machine: &'a Machine) -> Self {
        let state = Mutex::default();
        let crio = Self { machine, cni: machine.libcni(), sandboxes: Sandboxes::default(), state };
        crio.restart();
        crio
    }

    /// It watches both directories and loads everything anew at each change.
    fn follow(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let node = &self.machine.mesh.node;
        let mut seen = Vec::new();
        for dir in [node.net_dir(), node.bin_target()] {
            for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let Ok(metadata) = file.metadata() else { continue };
                seen.push((file.file_name(), metadata.ino(), metadata.mtime_nsec()));
            }
        }
        seen.sort();
        if seen != state.seen {
            state.seen = seen;
            state.lists = self.machine.lists();
            state.lists.retain(|list| self.cni.validate(list).is_ok());
        }
        state
    }

    fn list(&self) -> Result<List> {
        self.follow().lists.first().cloned().context(NO_LIST)
    }

    /// By what a pod is checked and deleted: the kept configuration, else one of this name that is there now.
    fn list_of(&self, network: &str, attachment: &Attachment) -> Result<(List, Attachment)> {
        if let Some(kept) = self.cni.kept_list(network, attachment) {
            return Ok(kept);
        }
        let list = self.follow().lists.iter().find(|list| list.name == network).cloned();
        Ok((
            list.with_context(|| format!("failed to find requested network name {network}"))?,
            attachment.clone(),
        ))
    }

    /// What the kubelet is told of a pod's network.
    fn look(
        &self,
        network: &str,
        attachment: &Attachment,
        limit: Option<Duration>,
    ) -> Result<serde_json::Value> {
        let (list, attachment) = self.list_of(network, attachment)?;
        if list.is_at_least("0.4.0") {
            self.cni.check(&list, &attachment, limit)?;
        }
        self.cni.result(network, &attachment).context("no result is kept")
    }

    fn del(&self, network: &str, attachment: &Attachment) -> Result<()> {
        let (list, attachment) = self.list_of(network, attachment)?;
        self.cni.del(&list, &attachment, STOP_LIMIT)
    }
}

impl Runtime for CriO<'_> {
    /// It asks every half second until it hears yes once; then it collects garbage, and does not ask again.
    fn network_not_ready(&self) -> Option<String> {
        let mut state = self.follow();
        let Some(list) = state.lists.first() else { return Some(NO_LIST.to_owned()) };
        if !state.ready {
            if let Err(error) = self.cni.status(list) {
                return Some(format!("{error:#}"));
            }
            let _ = self.cni.gc(list, &self.sandboxes.attachments(), GC_LIMIT);
            state.ready = true;
        }
        None
    }

    fn run(&self, pod: &PodSpec) -> Result<String> {
        if pod.host_network {
            return Ok(self.sandboxes.add(Sandbox::new(self.machine, pod, "")?));
        }
        let list = self.list()?;
        let mut sandbox = Sandbox::new(self.machine, pod, &list.name)?;
        let added = self.cni.add(&list, &sandbox.attachment, RUN_LIMIT);
        match added.and_then(|_| self.look(&list.name, &sandbox.attachment, Some(RUN_LIMIT))) {
            Ok(result) => sandbox.set_addresses(&result),
            Err(error) => {
                let _ = self.del(&list.name, &sandbox.attachment);
                sandbox.remove_netns();
                let what = format!("failed to create pod network sandbox {}", sandbox.id);
                return Err(error).context(what);
            }
        }
        Ok(self.sandboxes.add(sandbox))
    }

    fn stop(&self, sandbox: &str) -> Result<()> {
        let (network, attachment, nothing) = self.sandboxes.with(sandbox, |sandbox| {
            let nothing = sandbox.stopped || sandbox.pod.host_network;
            (sandbox.network.clone(), sandbox.attachment.clone(), nothing)
        })?;
        if !nothing {
            self.del(&network, &attachment)?;
        }
        self.sandboxes.with(sandbox, |sandbox| {
            sandbox.stopped = true;
            sandbox.remove_netns();
        })
    }

    fn remove(&self, sandbox: &str) -> Result<()> {
        self.stop(sandbox)?;
        self.sandboxes.remove(sandbox);
        Ok(())
    }

    fn sandboxes(&self) -> &Sandboxes {
        &self.sandboxes
    }

    /// A pod whose CHECK fails has no address from here on.
    fn restart(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
        drop(self.follow());
        for sandbox in self.sandboxes.all().iter_mut().filter(|sandbox| sandbox.netns.is_some()) {
            let result = self.look(&sandbox.network, &sandbox.attachment, None);
            sandbox.set_addresses(&result.unwrap_or_default());
        }
    }

    fn reboot(&self) {
        self.sandboxes.reboot();
        self.restart();
    }

    fn take_calls(&self) -> Vec<Call> {
        self.cni.take_calls()
    }
}
