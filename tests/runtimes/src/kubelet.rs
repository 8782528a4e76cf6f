//! The kubelet.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Runtime;
use crate::machine::Machine;
use crate::pod::{PodSpec, now};

/// Between two tries. The real one takes seconds.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the runtime is asked for its status. The real one asks every five seconds.
const STATUS_PERIOD: Duration = Duration::from_millis(500);

/// What starts the pods of a node: one on the node's network at once, others when the runtime says that the network is ready. A pod whose
/// sandbox fails is tried again.
pub struct Kubelet<'a> {
    /// The node.
    pub machine: &'a Machine,
    /// Its runtime.
    pub runtime: &'a dyn Runtime,
    /// When the runtime was asked, and why the network was not ready then.
    status: Mutex<Option<(Instant, Option<String>)>>,
}

/// A pod that runs.
#[derive(Debug)]
pub struct Started {
    /// The pod.
    pub pod: PodSpec,
    /// Its sandbox.
    pub sandbox: String,
    /// Why it did not run before.
    pub refusals: Vec<String>,
    /// From the first try.
    pub after: Duration,
}

impl<'a> Kubelet<'a> {
    /// One that has just started.
    pub fn new(machine: &'a Machine, runtime: &'a dyn Runtime) -> Self {
        Self { machine, runtime, status: Mutex::default() }
    }

    /// What the runtime said when it was asked last.
    fn network_not_ready(&self) -> Option<String> {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        match &*status {
            Some((asked, reason)) if asked.elapsed() < STATUS_PERIOD => reason.clone(),
            _ => {
                let reason = self.runtime.network_not_ready();
                *status = Some((Instant::now(), reason.clone()));
                reason
            }
        }
    }

    /// Starts a pod.
    ///
    /// # Errors
    /// It does not run within this time.
    pub fn start(&self, pod: &PodSpec, limit: Duration) -> Result<Started> {
        let (begin, taken_up, mut refusals) = (Instant::now(), now()?, Vec::new());
        loop {
            let not_ready = self.network_not_ready().filter(|_| !pod.host_network);
            let tried = match not_ready {
                Some(reason) => Err(anyhow::anyhow!("network is not ready: {reason}")),
                None => self.runtime.run(pod),
            };
            match tried {
                Ok(sandbox) => {
                    self.runs(pod, &sandbox, &taken_up)?;
                    return Ok(Started { pod: pod.clone(), sandbox, refusals, after: begin.elapsed() });
                }
                Err(error) => refusals.push(format!("{error:#}")),
            }
            if begin.elapsed() > limit {
                bail!("{}/{} does not start: {refusals:#?}", pod.namespace, pod.name);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Starts pods at the same time; in their order.
    ///
    /// # Errors
    /// One does not run within this time.
    pub fn start_all(&self, pods: &[PodSpec], limit: Duration) -> Result<Vec<Started>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                pods.iter().map(|pod| scope.spawn(move || self.start(pod, limit))).collect();
            threads.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?).collect()
        })
    }

    fn runs(&self, pod: &PodSpec, sandbox: &str, taken_up: &str) -> Result<()> {
        if pod.host_network {
            return Ok(());
        }
        let sandboxes = self.runtime.sandboxes();
        let netns = sandboxes.with(sandbox, |sandbox| sandbox.attachment.netns.clone())?;
        self.machine.runs(pod, &sandboxes.addresses(sandbox), netns.as_ref(), taken_up)
    }
}
