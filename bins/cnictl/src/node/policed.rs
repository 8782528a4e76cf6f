//! What enforces network policies where no agent does any more: in the node's own network namespace, and in those of pods that plugins noted.

use std::path::{Path, PathBuf};

use kernel::Kernel;
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use netns::{Inside, Netns, OpenCause};
use ruleset::{Backend, Plan};
use usage::owners;

use super::host_side::{in_host, iptables_of_the_node};

/// Where the agent's container has the node's files.
const MOUNTED: &str = "/host";

/// Namespaces that may have such rules.
pub(super) struct PolicedPlaces {
    pods: Vec<PolicedPod>,
    run_dir: PathBuf,
    errors: Vec<String>,
}

struct PolicedPod {
    /// For people.
    name: String,
    netns: Netns,
}

/// What says which pods may have rules, and that there were any: it goes when these have gone.
pub(super) struct PolicyRecords<'a> {
    pub(super) run_dir: &'a Path,
    pub(super) state_dir: &'a Path,
}

/// Names of what is there, or was; and what could not be looked at or removed.
pub(super) type KernelNames = (Vec<String>, Vec<String>);

// === impl PolicedPlaces ===

impl PolicedPlaces {
    /// The pods of which there is a record, as far as they are there.
    pub(super) fn find(run_dir: &Path) -> Self {
        let mut errors = Vec::new();
        let noted = applied::policed::all(run_dir).unwrap_or_else(|error| {
            errors.push(error.to_string());
            Vec::new()
        });
        let mut pods = Vec::new();
        for sandbox in noted {
            let name = of_pod(&sandbox.origin.pod);
            let in_container = sandbox.path.strip_prefix("/").map(|path| Path::new(MOUNTED).join(path)).ok();
            let opened = in_container.into_iter().chain([sandbox.path]).map(Netns::open);
            let (found, failed): (Vec<_>, Vec<_>) = opened.partition(Result::is_ok);
            let mut found = found.into_iter().filter_map(Result::ok);
            match found.find(|netns| netns.id() == sandbox.origin.netns) {
                Some(netns) => pods.push(PolicedPod { name, netns }),
                // One that is not there any more has nothing.
                None => errors.extend(
                    failed
                        .into_iter()
                        .filter_map(Result::err)
                        .find(is_unknown)
                        .map(|error| format!("{name}: {}", fault::chain(&error))),
                ),
            }
        }
        Self { pods, run_dir: run_dir.to_owned(), errors }
    }

    pub(super) fn look(&self) -> KernelNames {
        self.each(|inside, kernel| {
            let exists = |owner| kernel.exists(inside, &Plan::of_layer(Backend::Nftables, owner));
            let found = owners().into_iter().map(exists).collect::<Result<Vec<_>, _>>();
            found.map(|found| found.contains(&true)).map_err(|error| fault::chain(&error))
        })
    }

    /// Removes what is there.
    pub(super) fn remove(&self) -> KernelNames {
        let (found, errors) = self.look();
        if found.is_empty() {
            return (found, errors);
        }
        self.each(|inside, kernel| {
            let leave = |owner| kernel.leave(inside, &owner);
            let left = owners().into_iter().map(leave).collect::<Result<Vec<_>, _>>();
            let left = left.map_err(|error| fault::chain(&error))?;
            Ok(left.iter().any(|change| *change != kernel::Change::None))
        })
    }

    /// What the node has, and what pods have, where `does` says that there is something.
    fn each(&self, does: impl Fn(&Inside, Kernel<'_>) -> Result<bool, String> + Sync) -> KernelNames {
        let (mut found, mut errors) = (Vec::new(), self.errors.clone());
        let (of_node, of_pods) = (iptables_of_the_node(), Iptables::new().locking(&self.run_dir));
        let node =
            in_host(|inside| does(inside.inside(), Kernel { nftables: &Nftables, iptables: &of_node }));
        let node = [("network policies on the node".to_owned(), node)];
        let pods = self.pods.iter().map(|PolicedPod { name, netns }| {
            let done = netns.enter(|inside| does(inside, Kernel { nftables: &Nftables, iptables: &of_pods }));
            (name.clone(), done)
        });
        for (name, done) in node.into_iter().chain(pods) {
            match done.map_err(|error| fault::chain(&error)).and_then(|done| done) {
                Ok(true) => found.push(name),
                Ok(false) => {}
                Err(error) => errors.push(format!("{name}: {error}")),
            }
        }
        (found, errors)
    }
}

/// Whether a namespace may be there that could not be opened.
fn is_unknown(error: &netns::Error) -> bool {
    let is_gone = |cause: &OpenCause| matches!(cause, OpenCause::Missing | OpenCause::NotANamespace { .. });
    !matches!(error, netns::Error::Open { cause, .. } if is_gone(cause))
}

// === impl PolicyRecords ===

impl PolicyRecords<'_> {
    /// The paths, as far as something is there.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let paths = [self.state_dir.join(rundir::POLICIES_NAME), self.run_dir.join(rundir::POLICED_DIR)];
        paths.into_iter().filter(|path| path.exists()).collect()
    }

    /// Removes them after a clean-up that had these errors: all if it had none; else those of pods without one. Gives the paths that are gone.
    pub(super) fn remove(&self, errors: &[String]) -> KernelNames {
        let (mut gone, mut failed) = (Vec::new(), Vec::new());
        if !errors.is_empty() {
            let is_clean =
                |pod: &str| !errors.iter().any(|error| error.starts_with(&format!("{}: ", of_pod(pod))));
            for (path, sandbox) in applied::policed::files(self.run_dir).unwrap_or_default() {
                if is_clean(&sandbox.origin.pod)
                    && let Err(error) = std::fs::remove_file(&path)
                {
                    failed.push(format!("remove {}: {error}", path.display()));
                }
            }
            return (gone, failed);
        }
        for path in self.paths() {
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Ok(()) => gone.push(path.display().to_string()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => failed.push(format!("remove {}: {error}", path.display())),
            }
        }
        (gone, failed)
    }
}

fn of_pod(pod: &str) -> String {
    format!("network policies of pod {pod}")
}
