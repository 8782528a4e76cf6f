//! The API server over a new connection with the plugin's kubeconfig: what an ADD would meet.

use std::path::Path;
use std::time::{Duration, Instant};

use checks::{CheckFinding, CheckResult, catalogue};
use facts::PodRef;
use podsource::{Cause, Kubernetes, PodSource as _};

/// A question that an ADD asks: for a pod that need not be there.
const ASKED: &str = "istio-cni-check";

/// What one question to the API server tells of it and of the account's rights.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PluginAccess {
    /// Whether it takes the account.
    api: CheckFinding,
    /// Whether the account may read pods.
    rights: CheckFinding,
}

/// Asks for a pod as the plugin would, within `limit`.
pub fn look(run_dir: &Path, namespace: &str, limit: Duration) -> [CheckResult; 2] {
    let begun = Instant::now();
    let PluginAccess { api, rights } = ask(run_dir, namespace, limit);
    let seconds = begun.elapsed().as_secs_f64();
    [api.of(&catalogue::API_PLUGIN, seconds), rights.of(&catalogue::RIGHTS, seconds)]
}

fn ask(run_dir: &Path, namespace: &str, limit: Duration) -> PluginAccess {
    let path = run_dir.join(rundir::KUBECONFIG);
    if !path.exists() {
        let text = || format!("{} is not there, so that nobody is asked", path.display());
        return PluginAccess { api: CheckFinding::unknown(text()), rights: CheckFinding::unknown(text()) };
    }
    let begun = Instant::now();
    let source = Kubernetes::new(&path, env!("CARGO_PKG_VERSION")).with_timeout(limit);
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    let answer = source.pod(&PodRef::named(namespace, ASKED));
    let answered = |text: &str| {
        let taken = begun.elapsed().as_millis();
        CheckFinding::ok(format!("the API server {text} in {taken} ms"))
    };
    match answer {
        Ok(_) => PluginAccess { api: answered("answered the plugin's account"), rights: may_read() },
        Err(error) => match &*error.cause {
            Cause::Status { code: 404, .. } => {
                PluginAccess { api: answered("answered the plugin's account"), rights: may_read() }
            }
            Cause::Status { code: 403, .. } => PluginAccess {
                api: answered("answered the plugin's account"),
                rights: CheckFinding::failed(error.to_string(), "compare the ClusterRole with the chart's"),
            },
            _ => PluginAccess {
                api: CheckFinding::failed(error.to_string(), ""),
                rights: CheckFinding::unknown("the API server did not say"),
            },
        },
    }
}

fn may_read() -> CheckFinding {
    CheckFinding::ok("the plugin's account may read pods")
}
