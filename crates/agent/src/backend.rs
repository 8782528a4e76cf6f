//! Whether the plugin has what it loads rules with on this node: nf_tables in the kernel, or iptables on the node.
//!
//! The agent looks as far as it can: in a container it does not see the node's programs, and without CAP_NET_ADMIN the kernel does not answer. What
//! it cannot see, plugins tell when they fail for it. Only what is proven makes the agent unready.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kernel::iptables::Iptables;
use kernel::nft::{self, Support};
use ruleset::Backend;
use rundir::{OperationReport, Outcome};
use telemetry::Scope;
use tokio::sync::Notify;

use crate::health::{Health, HealthPart};

/// The longest that readiness waits for the first look: the kernel may be busy with rules of others.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// The pause between looks while something is missing.
const PAUSE: Duration = Duration::from_secs(5);
/// How long the word of a plugin counts. A runtime tries a pod again far more often than that.
const REPORT_COUNTS: Duration = Duration::from_secs(120);
/// What is missing of the kernel.
const NO_NFTABLES: &str = "the kernel has no nf_tables";
const NO_NAT: &str = "the kernel has no nf_tables nat for both families, which Linux has since 5.2";
const NO_MARKS: &str = "the kernel has no nf_tables route chains for both families or marks of connections, which Linux has since 5.2";

/// The node's backends, as far as they are known.
pub(crate) struct NodeBackend {
    health: Arc<Health>,
    log: Scope,
    /// Whether the node's programs are where this process looks for programs.
    sees_node: bool,
    /// `NATIVE_NFTABLES`: plugins take nothing else.
    asked: Option<bool>,
    reported: Mutex<Option<(Instant, String)>>,
    news: Notify,
}

/// What a look at the node found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// nf_tables does, or nothing says that it does not.
    Nftables,
    /// The reason why it is not nf_tables.
    Iptables(String),
    /// The reasons why it is neither.
    Neither(String),
}

impl NodeBackend {
    /// `host_root` is where the node's files are; `asked` is `NATIVE_NFTABLES`, where it is not `auto`.
    pub(crate) fn new(
        health: Arc<Health>,
        log: Scope,
        host_root: &std::path::Path,
        asked: Option<bool>,
    ) -> Self {
        let sees_node = host_root == std::path::Path::new("/") || !host_root.exists();
        Self { health, log, sees_node, asked, reported: Mutex::default(), news: Notify::new() }
    }

    /// Looks at the start, and again and again while something is missing.
    pub(crate) async fn live(self: Arc<Self>) {
        let mut told = None;
        loop {
            let (sees_node, asked) = (self.sees_node, self.asked);
            let look = tokio::task::spawn_blocking(move || look(sees_node, asked));
            let found = match tokio::time::timeout(FIRST_LOOK, look).await {
                Ok(Ok(found)) => found,
                // Nothing is proven.
                Ok(Err(_)) | Err(_) => Found::Nftables,
            };
            if told.as_ref() != Some(&found) {
                match &found {
                    Found::Nftables => {}
                    Found::Iptables(why) => {
                        self.log.info("pods get their rules by iptables", &[("cause", why)]);
                    }
                    Found::Neither(why) => self.log.error(neither(why), &[]),
                }
            }
            let missing = match &found {
                Found::Neither(why) => Some(neither(why)),
                Found::Nftables | Found::Iptables(_) => self.last_report(),
            };
            told = Some(found);
            match missing {
                Some(missing) => {
                    self.health.pending(HealthPart::Backend, &missing);
                    let _ = tokio::time::timeout(PAUSE, self.news.notified()).await;
                }
                None => {
                    self.health.ready(HealthPart::Backend);
                    self.news.notified().await;
                }
            }
        }
    }

    /// Takes what a plugin says about its call.
    pub(crate) fn heard(&self, report: &OperationReport) {
        let works = matches!(report.result, Outcome::Captured | Outcome::Incomplete);
        let mut reported = self.reported();
        if report.backend_missing {
            *reported = Some((Instant::now(), report.error.clone()));
        } else if works && report.operation == "add" && reported.is_some() {
            *reported = None;
        } else {
            return;
        }
        self.news.notify_one();
    }

    fn last_report(&self) -> Option<String> {
        let mut reported = self.reported();
        if reported.as_ref().is_some_and(|(at, _)| at.elapsed() > REPORT_COUNTS) {
            *reported = None;
        }
        reported
            .as_ref()
            .map(|(_, error)| format!("pods with a sidecar cannot be set up on this node: {error}"))
    }

    fn reported(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn neither(why: &str) -> String {
    format!("no pod can get rules on this node: {why}")
}

fn look(sees_node: bool, asked: Option<bool>) -> Found {
    let Some(support) = support() else {
        return Found::Nftables;
    };
    found(support, sees_node.then(Iptables::new).as_ref(), asked)
}

/// `None`: it cannot be asked.
fn support() -> Option<Support> {
    let inside = netns::Inside::of_calling_thread().ok()?;
    nft::probe(&inside).ok()
}

/// `iptables` is the node's, where it can be seen.
fn found(support: Support, iptables: Option<&Iptables>, asked: Option<bool>) -> Found {
    if support.redirect && asked != Some(false) {
        return Found::Nftables;
    }
    let why = match asked {
        Some(false) => "NATIVE_NFTABLES=false asks for iptables",
        _ if support.tables => NO_NAT,
        _ => NO_NFTABLES,
    };
    if asked == Some(true) {
        return Found::Neither(format!("{why}, and NATIVE_NFTABLES=true asks for it"));
    }
    match iptables.map_or(Ok(()), |iptables| iptables.usable_with(support)) {
        Ok(()) => Found::Iptables(why.to_owned()),
        Err(error) => Found::Neither(format!("{why}, and {}", fault::chain(&error))),
    }
}

/// What ambient mode takes where the choice is left to the node, and why it is not nf_tables.
///
/// # Errors
/// Neither works: the reasons.
pub(crate) fn choose(
    inside: &netns::Inside,
    iptables: &Iptables,
) -> Result<(Backend, Option<String>), String> {
    // Where the kernel does not answer, setting up says why.
    nft::probe(inside).map_or(Ok((Backend::Nftables, None)), |support| choose_by(support, iptables))
}

fn choose_by(support: Support, iptables: &Iptables) -> Result<(Backend, Option<String>), String> {
    let why = match support {
        Support { redirect: true, marks: true, .. } => return Ok((Backend::Nftables, None)),
        Support { tables: false, .. } => NO_NFTABLES,
        Support { redirect: false, .. } => NO_NAT,
        Support { .. } => NO_MARKS,
    };
    match iptables.usable_with(support) {
        Ok(()) => Ok((Backend::Iptables, Some(why.to_owned()))),
        Err(error) => Err(format!("neither backend works here: {why}, and {}", fault::chain(&error))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Programs of these variants, by their usual names.
    fn programs(variants: &[&str]) -> (tempfile::TempDir, Iptables) {
        let dir = tempfile::tempdir().unwrap();
        for variant in variants {
            let program = dir.path().join(format!("xtables-{variant}-multi"));
            std::fs::write(&program, "").unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            for kind in ["restore", "save"] {
                symlink(&program, dir.path().join(format!("iptables-{variant}-{kind}"))).unwrap();
            }
        }
        let search = vec![dir.path().to_owned()];
        (dir, Iptables::new().searching(search))
    }

    #[test]
    fn what_a_kernel_and_its_programs_allow() {
        let support = |tables, redirect, marks| Support { tables, redirect, marks, tproxy: marks };
        const BOTH: &[&str] = &["nft", "legacy"];
        // The kernel; the programs; of a node that has both, what ambient mode takes, and what is said of sidecars.
        for (kernel, variants, ambient, sidecar) in [
            (support(true, true, true), &[][..], Ok(Backend::Nftables), None),
            (support(true, true, true), BOTH, Ok(Backend::Nftables), None),
            // Linux 4.19, 5.1.
            (support(true, false, false), BOTH, Ok(Backend::Iptables), Some(true)),
            (support(true, false, false), &["nft"], Ok(Backend::Iptables), Some(true)),
            (support(true, false, false), &[], Err("5.2, and cannot find iptables-restore"), Some(false)),
            (support(true, true, false), &["nft"], Ok(Backend::Iptables), None),
            (support(true, true, false), &[], Err("marks of connections"), None),
            // 3.10, or without the module.
            (support(false, false, false), BOTH, Ok(Backend::Iptables), Some(true)),
            (support(false, false, false), &["legacy"], Ok(Backend::Iptables), Some(true)),
            (
                support(false, false, false),
                &["nft"],
                Err("works by nf_tables, which this kernel"),
                Some(false),
            ),
            (support(false, false, false), &[], Err("no nf_tables, and cannot find"), Some(false)),
        ] {
            let (_dir, iptables) = programs(variants);
            match (choose_by(kernel, &iptables), ambient) {
                (Ok((backend, why)), Ok(wanted)) => {
                    assert_eq!((backend, why.is_some()), (wanted, wanted == Backend::Iptables), "{kernel:?}");
                }
                (Err(text), Err(part)) => assert!(text.contains(part), "{kernel:?}: {text}"),
                (found, wanted) => panic!("{kernel:?} {variants:?}: {found:?} instead of {wanted:?}"),
            }
            let by = |asked| found(kernel, Some(&iptables), asked);
            let Some(works) = sidecar else {
                assert_eq!([None, Some(true)].map(by), [Found::Nftables, Found::Nftables]);
                continue;
            };
            for asked in [None, Some(false)] {
                assert_eq!(
                    matches!(by(asked), Found::Iptables(_)),
                    works,
                    "{kernel:?} {variants:?}: {asked:?}"
                );
            }
            assert!(matches!(by(Some(true)), Found::Neither(why) if why.contains("NATIVE_NFTABLES=true")));
            // What cannot be seen is not proven.
            assert!(matches!(found(kernel, None, None), Found::Iptables(_)));
        }
    }
}
