//! The plugin's program after an uninstallation.
//!
//! libcni keeps the result of each ADD together with the configuration it was made by, and runtimes such as CRI-O and Multus delete a pod by
//! that one: a plugin that it names and that is not there fails the DEL, and the pod never ends. So the program stays while a kept result
//! names it, with a mark beside it. By the mark a DEL knows that it may be the last one, and an ADD that it captures nothing any more.
//!
//! libcni forgets a result only after all plugins of the list have succeeded, and our plugin is the first to be asked. A DEL whose later part
//! fails is repeated, so the program must not go while it serves it: a process that outlives the DEL ([`Watcher`]) waits until the result is
//! forgotten.

mod mark;
mod results;
mod watcher;

pub use mark::{Mark, remove_if_unneeded, remove_now};
pub use results::{Results, look};
pub use watcher::{Watcher, watch_if_asked};

/// Where libcni keeps results unless the runtime says otherwise (`CacheDir` of libcni's `api.go`).
pub const CACHE_DIR: &str = "/var/lib/cni";

#[cfg(test)]
mod tests;
