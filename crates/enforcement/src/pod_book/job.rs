//! What is to be done in a pod's namespace.

use std::sync::Arc;

use policy::compile::CompiledPod;
use ruleset::{Element, SetDelta};

/// What is to be done in a pod's namespace.
#[derive(Debug, Clone)]
pub struct PodJob {
    /// The rules that it is to have; nothing: none.
    pub rules: Option<Arc<CompiledPod>>,
    /// Those that it is known to have.
    pub before: Option<Arc<CompiledPod>>,
    /// Those that it had when that was known last: something of them may be left.
    pub last: Option<Arc<CompiledPod>>,
    /// What becomes of its sets, those that are new among them.
    pub sets: Vec<SetJob>,
    /// Whether everything is to be compared with what is there.
    pub is_whole: bool,
    /// Whether all of it was loaded already, so that whatever differs was changed by others.
    pub is_repeat: bool,
    /// Whether the rules are to judge what is inside the pod's tunnel.
    pub judges_tunnel: bool,
}

/// What becomes of a set.
#[derive(Debug, Clone)]
pub struct SetJob {
    /// Its name in the kernel.
    pub name: String,
    /// The whole of it, where what is there is not known; else what changes.
    pub content: SetContent,
}

/// See [`SetJob`].
#[derive(Debug, Clone)]
pub enum SetContent {
    /// All members.
    Whole(Vec<Element>),
    /// Some come or go.
    Changes(SetDelta),
}
