//! Failures, the same for all crates.
//!
//! - [`chain`]: an error with its causes, as one line.
//! - [`Retry`]: when what failed is tried again; [`Backoff`]: after which pause.
//! - [`Fault`]: an error that knows that, and the parts of its text; [`message`] makes of them what a person reads, the cause first.

mod backoff;
mod chain;
mod message;

use std::borrow::Cow;
use std::error::Error;

pub use backoff::Backoff;
pub use chain::chain;
pub use message::{LONGEST_MESSAGE, message};

/// When what failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// After a growing pause: the same may succeed then, though nobody has done anything.
    Backoff,
    /// When what it depends on has changed: the pod, the node, a file, the configuration. Until then it would fail alike.
    OnChange,
}

/// An error of which the parts are known. No part names the pod: who shows the error does, once.
pub trait Fault: Error {
    /// When what failed is tried again.
    fn retry(&self) -> Retry;

    /// What was being done, such as `add table inet istio-cni`; empty where the cause says it.
    fn operation(&self) -> &str {
        ""
    }

    /// Why it failed, without what was being done and without advice.
    fn root_cause(&self) -> String {
        chain::root(self)
    }

    /// What helps, as a clause: `load the module nf_tables`.
    fn advice(&self) -> Option<Cow<'static, str>> {
        None
    }
}
