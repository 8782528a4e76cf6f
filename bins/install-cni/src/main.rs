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

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == delete_daemonset::NAME) {
        return delete_daemonset::run();
    }
    match options::Flags::parse(std::env::args_os()) {
        Ok(flags) => run::run(flags),
        Err(error) => error.exit(),
    }
}
