//! `add`, `check`, `del`, `status --conf`, `gc`, `version`, `selftest`: runs the plugins of a conflist as a container runtime does (CNI spec 1.1,
//! section 3, and containernetworking/cni `libcni/api.go`).

mod args;
mod attachment;
mod cache;
mod conflist;
mod exec;
mod report;
mod run;
mod selftest;

pub(crate) use args::{AddArgs, CheckArgs, DelArgs, GcArgs, RunArgs, VersionArgs, seconds};
pub(crate) use conflist::Conflist;
pub(crate) use exec::execute;
pub(crate) use selftest::SelftestArgs;
