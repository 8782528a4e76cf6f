//! `install-cni`, the node agent.
//!
//! What it does is put together in [`run`]: the crates `install` (the plugin on this node) and `cluster` (the pods of this node) each own one
//! outside thing and do not know each other.

mod ambient;
mod backend;
mod boot;
mod config;
mod config_dir;
mod delete_daemonset;
mod events;
mod health;
mod log_socket;
mod metrics;
mod node_lock;
mod observe;
mod older;
mod options;
mod own_node;
mod plugin_socket;
mod ports;
mod run;
mod serve;
mod shutdown;
mod uncaptured;
mod version;

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(word) if word == delete_daemonset::NAME => return delete_daemonset::run(),
        Some(word) if word == version::NAME => return version::run(std::env::args_os().skip(1)),
        _ => {}
    }
    match options::Flags::parse(std::env::args_os()) {
        Ok(flags) => run::run(flags),
        Err(error) => error.exit(),
    }
}
