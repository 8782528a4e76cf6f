//! The node agent as a library; `install-cni` is its program.
//!
//! What it does is put together in `run`: the crates `install` (the plugin on this node) and `cluster` (the pods of this node) each own one
//! outside thing and do not know each other.

mod ambient;
mod backend;
mod backends;
mod boot;
mod config;
mod config_dir;
mod conflicts;
mod delete_daemonset;
mod drains;
mod events;
mod finder;
mod health;
mod kept_facts;
mod live;
mod log_socket;
mod node_lock;
mod observe;
mod own_node;
mod periodic;
mod plugin_socket;
mod pods;
mod pods_report;
mod policy;
mod policy_file;
mod policy_socket;
mod ports;
mod rights;
mod run;
mod samples;
mod shutdown;
mod sidecars;
mod slots;
mod spare;
mod taint;
#[allow(dead_code, reason = "what people see of a pod, and conflicts, come next")]
mod verification;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

/// The program: `arguments` are those of the process, its name included.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match arguments.get(1) {
        Some(word) if word == delete_daemonset::NAME => return delete_daemonset::run(),
        Some(word) if word == version::NAME => return version::run(arguments.into_iter().skip(1)),
        _ => {}
    }
    match options::agent::Flags::parse(arguments) {
        Ok(flags) => run::run(flags),
        Err(error) => error.exit(),
    }
}
