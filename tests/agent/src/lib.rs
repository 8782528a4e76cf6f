//! Runs the `install-cni` executable as a node does, with directories, ports and an API server of its own, and the plugin beside it.
//!
//! - [`Node`]: directories as the agent's container sees them, and an API server double; starts agents.
//! - [`Agent`]: a running one, with what it logs, answers and counts.
//! - [`PodCall`]: a call of the plugin as the runtime makes it from the configuration that the agent wrote.
//! - [`looks`]: everything of ours on a node, looked at while something changes.
//! - [`Mesh`]: a node in ambient mode, its pods, and what it has of them.
//! - [`http`]: requests over ports and unix sockets, also broken ones.

mod agent;
pub mod http;
mod log;
pub mod looks;
pub mod mesh;
mod metrics;
mod node;
mod plugin;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use agent::{Agent, Ended, Launch};
pub use log::Log;
pub use mesh::{Mesh, MeshPod};
pub use metrics::Metrics;
pub use node::{NAME as NODE_NAME, Node, pod_object};
pub use plugin::PodCall;

/// How long something may take that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Tries until it works.
///
/// # Errors
/// The last failure, when the time is over.
pub fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match check() {
            Ok(found) => return Ok(found),
            Err(error) if start.elapsed() > limit => {
                return Err(error).with_context(|| format!("{what}: not within {limit:?}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Runs a closure on a thread that is another user, without any capability.
///
/// # Errors
/// When the thread cannot become that user.
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> Result<T> {
    use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<T> {
            let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
            set_thread_groups(&[])?;
            set_thread_res_gid(group, group, group)?;
            set_thread_res_uid(user, user, user)?;
            Ok(act())
        });
        thread.join().map_err(|_| anyhow::anyhow!("the other user's thread panicked"))?
    })
}
