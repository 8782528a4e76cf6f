//! The loop that puts the plugin on the node and keeps it there.

mod handle;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cni::conflist::{Document, PluginEntry};
use fault::Backoff;

pub use handle::Handle;

use crate::binaries::{Binaries, PLUGIN};
use crate::config::{self, ConfigError, ConfigStep, EntryRemoval, InstallConfig, Obstacle, WaitReason};
use crate::error::Error;
use crate::event::{InstallEvent, Observer};
use crate::options::{InstallOptions, OptionsError};
use crate::throttle::Throttle;
use crate::uninstall::{UninstallReport, uninstall};
use crate::watch::{Wake, Watch, WatchedPlaces};

/// Pauses after failures in a row.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// How often a directory that does not exist, or a file that is being written, is looked for.
const POLL: Duration = Duration::from_secs(1);
/// How often an obstacle is looked at again that may lie outside of the directories that are watched, such as behind a link.
const RECHECK: Duration = Duration::from_secs(10);
/// How often a configuration that others write at the same moment is planned anew.
const TRIES: u32 = 5;

/// Puts the plugin on the node and keeps it there.
pub struct Installer {
    options: InstallOptions,
    observer: Box<dyn Observer>,
    handle: Handle,
    throttle: Throttle,
    /// Where the plugin was put, and what was written.
    placed: Option<(PathBuf, PluginEntry)>,
    /// Folders of networks' further plugins, as of the last look.
    folders: Vec<PathBuf>,
    is_ready: bool,
    reason: String,
    told: BTreeSet<String>,
    failures: u32,
}

/// What a look at everything found.
enum Look {
    InOrder(PathBuf),
    Differs,
    Waiting(WaitReason),
    Unused(Obstacle),
}

impl Installer {
    /// Nothing is touched before [`Installer::run`].
    ///
    /// # Errors
    ///
    /// Options that cannot be meant, or no descriptor to be had.
    pub fn new(options: InstallOptions, observer: Box<dyn Observer>) -> Result<Self, OptionsError> {
        options.check()?;
        Ok(Self {
            options,
            observer,
            handle: Handle::new().map_err(OptionsError::NoDescriptor)?,
            throttle: Throttle::new(Instant::now()),
            placed: None,
            folders: Vec::new(),
            is_ready: false,
            reason: String::new(),
            told: BTreeSet::new(),
            failures: 0,
        })
    }

    /// For other threads: to stop the loop, to change the plugin's options.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Installs, watches and repairs until [`Handle::stop`]. A failed cycle is told and tried again; it never ends the loop, because the
    /// agent has sockets to serve meanwhile.
    pub fn run(&mut self) {
        self.sweep();
        loop {
            let pause = self.throttle.pause(Instant::now());
            if !pause.is_zero() {
                self.handle.wait(pause);
            }
            if let Some(entry) = self.handle.take_update() {
                self.options.entry = entry;
            }
            if self.handle.is_stopped() {
                self.set_unready("the agent is stopping");
                return;
            }
            match self.cycle() {
                Ok(()) => self.failures = 0,
                Err(error) => self.failed(&error),
            }
        }
    }

    /// Takes the plugin off the node, see [`uninstall`]. Whether to do that at the end is the agent's decision.
    pub fn cleanup(&self, leftovers: &[PathBuf]) -> UninstallReport {
        uninstall(&self.options, leftovers)
    }

    /// One turn: write what differs, watch, look again, wait.
    fn cycle(&mut self) -> Result<(), Error> {
        self.install()?;
        let mut watch = self.watch()?;
        let timeout = match self.look()? {
            Look::Differs => return Ok(()),
            Look::Waiting(waiting) => {
                if self.set_unready(&waiting.to_string()) {
                    self.tell(&InstallEvent::Waiting { waiting: &waiting });
                }
                let is_poll = watch.is_missing() || matches!(waiting, WaitReason::Settling(_));
                is_poll.then_some(POLL)
            }
            Look::Unused(obstacle) => {
                self.set_unready(&obstacle.to_string());
                Some(if watch.is_missing() { POLL } else { RECHECK })
            }
            Look::InOrder(path) => {
                if watch.has_changed().map_err(Error::Watch)? {
                    return Ok(());
                }
                (self.is_ready, self.failures) = (true, 0);
                self.reason.clear();
                self.tell(&InstallEvent::Ready { config: &path });
                None
            }
        };
        let wake = watch.wait(self.handle.readable(), timeout).map_err(Error::Watch)?;
        if self.is_ready {
            self.set_unready(match wake {
                Wake::Called => "the options have changed: everything is checked again",
                Wake::Changed | Wake::TimedOut => {
                    "something on the node has changed: everything is checked again"
                }
            });
        }
        Ok(())
    }

    /// Tells a failure and waits for the next try, or for a change.
    fn failed(&mut self, error: &Error) {
        self.failures += 1;
        let retry_in = PAUSES.pause(self.failures);
        self.set_unready(&error.to_string());
        self.tell(&InstallEvent::Failed { error, retry_in });
        let waited = self.watch().and_then(|mut watch| {
            let timeout = if watch.is_missing() { retry_in.min(POLL) } else { retry_in };
            watch.wait(self.handle.readable(), Some(timeout)).map_err(Error::Watch)
        });
        if waited.is_err() {
            self.handle.wait(retry_in);
        }
    }

    // === the phases, in upstream's order ===

    fn install(&mut self) -> Result<(), Error> {
        for path in self.binaries().ensure().map_err(Error::Binaries)? {
            self.tell(&InstallEvent::BinaryCopied { path: &path });
        }
        if let Some(kubeconfig) = &self.options.kubeconfig {
            let written = kubeconfig.ensure(&self.options.run_dir).map_err(Error::Kubeconfig)?;
            if let Some(path) = written {
                self.tell(&InstallEvent::KubeconfigWritten { path: &path });
            }
        }
        self.configure().map_err(Error::Config)
    }

    fn configure(&mut self) -> Result<(), ConfigError> {
        for _ in 0..TRIES {
            let write = match self.plan()?.step {
                ConfigStep::Wait(_) => return Ok(()),
                ConfigStep::Keep(path) => return self.release(&path),
                ConfigStep::Write(write) => write,
            };
            if config::write(&write)? {
                self.written(&write);
                return self.release(&write.target);
            }
        }
        Err(ConfigError::Unsteady(self.options.net_dir.clone()))
    }

    fn plan(&mut self) -> Result<config::ConfigPlan, ConfigError> {
        let plan = config::plan(&InstallConfig { options: &self.options, entry: &self.options.entry })?;
        let mut told = BTreeSet::new();
        for problem in &plan.problems {
            self.tell_once(&mut told, &InstallEvent::Skipped { problem });
        }
        if let Some(obstacle) = &plan.obstacle {
            self.tell_once(&mut told, &InstallEvent::Unused { obstacle });
        }
        self.told = told;
        self.folders.clone_from(&plan.folders);
        Ok(plan)
    }

    /// Tells what was written, and whose fault it was.
    fn written(&mut self, write: &config::Write) {
        let path = &write.target;
        let is_overwritten = self.placed.as_ref().is_some_and(|(placed, entry)| {
            placed == path && !write.found.as_ref().is_some_and(|found| found.holds(entry))
        });
        if is_overwritten {
            let component = config::component(path, write.found.as_ref());
            self.tell(&InstallEvent::Overwritten { component: &component, path });
            if let Some(hits) = self.throttle.rewritten() {
                self.tell(&InstallEvent::Throttled { path, hits });
            }
        }
        let was_in = write.found.as_ref().is_some_and(Document::has_entry);
        self.tell(&InstallEvent::ConfigWritten { path, was_in });
        self.placed = Some((path.clone(), self.options.entry.clone()));
    }

    /// Takes the plugin out of what was the primary configuration before.
    fn release(&mut self, used: &std::path::Path) -> Result<(), ConfigError> {
        for taken in config::release(&self.options.net_dir, used)? {
            let (EntryRemoval::Restored(path)
            | EntryRemoval::EntryRemoved(path)
            | EntryRemoval::Deleted(path)) = &taken;
            self.tell(&InstallEvent::ConfigReleased { path });
        }
        Ok(())
    }

    /// Whether everything is as it should be; nothing is written.
    fn look(&mut self) -> Result<Look, Error> {
        let is_differing = !self.binaries().is_in_order().map_err(Error::Binaries)?
            || match &self.options.kubeconfig {
                Some(kubeconfig) => {
                    !kubeconfig.is_in_order(&self.options.run_dir).map_err(Error::Kubeconfig)?
                }
                None => false,
            };
        let plan = self.plan().map_err(Error::Config)?;
        if let ConfigStep::Keep(path) = &plan.step {
            self.placed = Some((path.clone(), self.options.entry.clone()));
        }
        Ok(match (plan.step, plan.obstacle) {
            _ if is_differing => Look::Differs,
            (ConfigStep::Write(_), _) => Look::Differs,
            (ConfigStep::Wait(WaitReason::Settling(path)), _) => Look::Waiting(WaitReason::Settling(path)),
            (ConfigStep::Wait(_) | ConfigStep::Keep(_), Some(obstacle)) => Look::Unused(obstacle),
            (ConfigStep::Wait(waiting), None) => Look::Waiting(waiting),
            (ConfigStep::Keep(path), None) => Look::InOrder(path),
        })
    }

    fn binaries(&self) -> Binaries<'_> {
        Binaries { source: &self.options.bin_source, targets: &self.options.bin_targets }
    }

    // === watching and telling ===

    fn watch(&self) -> Result<Watch, Error> {
        let options = &self.options;
        let mut places: WatchedPlaces = vec![(options.net_dir.clone(), None)];
        let mut names: BTreeSet<_> = self.binaries().names().unwrap_or_default().into_iter().collect();
        names.insert(leftover::Mark::name(PLUGIN.as_ref()));
        places.extend(options.bin_targets.iter().map(|target| (target.clone(), Some(names.clone()))));
        if let Some(kubeconfig) = &options.kubeconfig {
            places.extend(kubeconfig.watched().into_iter().map(|directory| (directory, None)));
            let name = BTreeSet::from([rundir::KUBECONFIG.into()]);
            places.push((options.run_dir.clone(), Some(name)));
        }
        places.extend(
            self.folders.iter().filter(|folder| folder.is_dir()).map(|folder| (folder.clone(), None)),
        );
        let mut watch = Watch::new().map_err(Error::Watch)?;
        for (directory, names) in places {
            watch.add(&directory, names).map_err(Error::Watch)?;
        }
        Ok(watch)
    }

    fn sweep(&mut self) {
        let mut errors = config::sweep(&self.options.net_dir);
        errors.extend(config::sweep(&self.options.run_dir));
        errors.extend(self.binaries().sweep());
        for error in &errors {
            self.tell(&InstallEvent::NotSwept { error });
        }
    }

    /// Whether that is news.
    fn set_unready(&mut self, reason: &str) -> bool {
        let is_news = self.is_ready || self.reason != reason;
        self.is_ready = false;
        if is_news {
            reason.clone_into(&mut self.reason);
            self.tell(&InstallEvent::NotReady { reason });
        }
        is_news
    }

    fn tell_once(&mut self, told: &mut BTreeSet<String>, event: &InstallEvent<'_>) {
        let text = event.to_string();
        if !self.told.contains(&text) {
            self.tell(event);
        }
        told.insert(text);
    }

    fn tell(&mut self, event: &InstallEvent<'_>) {
        self.observer.event(event);
    }
}

impl std::fmt::Debug for Installer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Installer")
            .field("options", &self.options)
            .field("placed", &self.placed)
            .finish_non_exhaustive()
    }
}
