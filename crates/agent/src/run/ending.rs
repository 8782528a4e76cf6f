//! Everything that is taken off the node at the end.

use std::thread::JoinHandle;

use install::Installer;
use rundir::{APPLIED_DIR, BOOT_NAME, FACTS_DIR, SANDBOXES_DIR, SETTINGS_DIR};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{Agent, Error};
use crate::shutdown;

/// What tells this process to end.
pub(crate) struct ProcessEnd {
    terminate: Signal,
    interrupt: Signal,
}

// === impl Agent ===

impl Agent {
    /// The DaemonSet was deleted, and this pod has not been told to end yet: what needs rights in the cluster is done while these exist, and the
    /// sockets are served meanwhile. Waits for the signal, or starts over when the DaemonSet is there again, wherever the cleanup is then: as
    /// after a kill.
    pub(super) async fn clean_up_and_wait(
        &self,
        installer: JoinHandle<Installer>,
        ambient: tokio::task::JoinHandle<()>,
        end: &mut ProcessEnd,
        tasks: [JoinSet<()>; 2],
    ) -> Result<(), Error> {
        let pods = self.ambient.clone().clean_up(ambient);
        let work = async {
            let (installer, ()) = tokio::join!(self.take_plugin_off(installer), pods);
            self.leaver.finish().await;
            let signal = end.told().await;
            self.log.info("ending", &[("signal", &signal)]);
            installer
        };
        let installer = tokio::select! {
            installer = work => installer?,
            () = shutdown::is_there_again(self) => return Err(shutdown::start_over(self).into()),
        };
        for mut tasks in tasks {
            tasks.shutdown().await;
        }
        self.end_audit().await;
        // Facts were written while the sockets were served.
        self.clean_up(&installer);
        Ok(())
    }

    /// Waits for the installer's end, and does the opposite of its work.
    pub(super) async fn take_plugin_off(&self, installer: JoinHandle<Installer>) -> Result<Installer, Error> {
        // On a thread of its own: those of the runtime may all wait for the kernel.
        let (ended, end) = oneshot::channel();
        let wait = std::thread::Builder::new().name("installer-end".to_owned());
        // Nobody listens any more only where the agent starts over.
        wait.spawn(move || drop(ended.send(installer.join()))).map_err(Error::Runtime)?;
        let installer = end.await.map_err(|_| Error::Installer)?.map_err(|_| Error::Installer)?;
        self.clean_up(&installer);
        Ok(installer)
    }

    /// Takes everything off the node, parts of pod objects included. The plugin's log and notes about uncaptured pods stay: they are evidence.
    fn clean_up(&self, installer: &Installer) {
        let (run_dir, state_dir) = (&self.config.run_dir, &self.config.state_dir);
        let mut leftovers =
            [FACTS_DIR, APPLIED_DIR, SANDBOXES_DIR, SETTINGS_DIR].map(|name| run_dir.join(name)).to_vec();
        leftovers.extend([FACTS_DIR, BOOT_NAME].map(|name| state_dir.join(name)));
        let report = installer.cleanup(&leftovers);
        // Not empty, or a mount: nothing of ours is in it.
        let _ = std::fs::remove_dir(state_dir);
        for done in &report.done {
            self.log.info(done, &[]);
        }
        for error in &report.errors {
            self.log.error("cleanup is not complete", &[("error", error)]);
        }
    }
}

// === impl ProcessEnd ===

impl ProcessEnd {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for SIGTERM or SIGINT; gives its name. A signal that comes while nobody waits is kept.
    pub(crate) async fn told(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
