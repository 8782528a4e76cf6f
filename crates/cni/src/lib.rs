//! The Container Network Interface (CNI) protocol layer: what arrives from a container runtime, and what goes back.
//!
//! A runtime starts a plugin once per operation: the verb and the pod's coordinates come in `CNI_*` environment
//! variables, the network configuration as JSON on stdin, the answer leaves as one JSON object on stdout. This crate
//! knows that contract for the CNI spec versions 0.1.0 to 1.1.0 and nothing of what a plugin does:
//!
//! ```text
//! env + stdin ─► dispatch ─► Request ─► Plugin::{add, del, check, status, gc}
//!                   │                        │
//!     stdout ◄──────┴── CniResult | Error ◄──┘
//! ```
//!
//! It is pure: environment, stdin, stdout and stderr are arguments, and whether `CNI_NETNS` is the plugin's own
//! namespace is a question put to the [`Plugin`]. All input is untrusted: stdin is bounded in bytes and in nesting, no
//! input panics, and whatever happens stdout carries one JSON object or nothing.
//!
//! | module | holds |
//! |---|---|
//! | [`version`] | [`SpecVersion`]: the seven supported ones, their order, their families |
//! | [`error`] | [`Error`] and the well-known [`code`]s |
//! | [`env`] | the verbs and the table of required variables |
//! | [`args`] | `CNI_ARGS` |
//! | [`json`] | an ordered JSON tree with the lenient key matching that plugins are expected to have |
//! | [`config`] | [`PluginConf`]: the typed network configuration |
//! | [`conflist`] | configuration files: ours put into another component's list and taken out again |
//! | [`libcni`] | whether runtimes load a configuration file, and as what |
//! | [`result`] | [`CniResult`]: decoded from and printed as every version |
//! | [`dispatch`](mod@dispatch) | one run from environment to exit code |

pub mod args;
pub mod config;
pub mod conflist;
pub mod dispatch;
pub mod env;
pub mod error;
mod gojson;
pub mod json;
pub mod libcni;
pub mod result;
pub mod version;

pub use args::Args;
pub use config::{FailurePolicy, PluginConf, PodSourceConfig, UnpreparedPod};
pub use dispatch::{Identity, Invocation, NetnsRelation, Plugin, PluginExit, Request, dispatch};
pub use env::Verb;
pub use error::{Error, code};
pub use gojson::WrongType;
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use version::SpecVersion;
