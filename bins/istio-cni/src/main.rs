//! `istio-cni`, the plugin that a container runtime runs last in its chain: it decides whether a pod's traffic goes through the
//! mesh's proxy, and makes it so inside the pod's network namespace.
//!
//! The protocol is in crate `cni`, the decision and the rules in `capture`, their loading in `kernel`; here the three meet.

mod check;
mod failure;
mod groups;
mod handover;
mod job;
mod plugin;
mod policies;
mod progress;
mod report;
mod sources;
mod status;
mod within;

use std::process::ExitCode;
use std::time::Instant;

use cni::{Identity, Invocation, dispatch};
use telemetry::Logger;

fn main() -> ExitCode {
    let started = Instant::now();
    let supervisor = kernel::iptables::run_supervisor_if_asked();
    let watcher = leftover::watch_if_asked();
    let log = Logger::new();
    failure::log_panics(&log);
    let mut plugin = plugin::IstioCni::new(&log, supervisor, watcher, started);
    let outcome = dispatch(
        Invocation {
            identity: Identity { name: "istio-cni", version: env!("CARGO_PKG_VERSION") },
            env: &|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()),
            stdin: &mut std::io::stdin().lock(),
            stdout: &mut std::io::stdout(),
            // Not locked: a line of another thread, such as a panic inside the pod, must not wait for this one.
            stderr: &mut std::io::stderr(),
        },
        &mut plugin,
    );
    if let Some(error) = &outcome.error {
        plugin.log_failure(error);
    }
    log.finish();
    ExitCode::from(outcome.exit)
}
