//! The plugin and the agent under doubles of containerd 2 and CRI-O.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod boot;
mod healed;
mod joining;
mod reboot;
mod recordings;
mod restart;
mod state_dir;
mod uninstall;
