//! `pods`, `verify`, `diff` and `restore`: the pods of this node, which should be captured, which are, and by what evidence.
//!
//! The agent answers from what it verifies all the time. Without it the same is found by a look of this program: pods from files of the run
//! directory, their namespaces by records, mounts and processes, the rules from the kernel. Only `restore` writes, and it asks the agent to.

mod conflicting;
mod diff;
mod disk;
mod evidence;
mod list;
mod listed;
mod listing;
mod live;
mod locate;
mod one;
mod own;
mod parallel;
mod restore;
mod select;
mod unified;
mod verify;
mod view;

pub(crate) use conflicting::ConflictsView;
pub(crate) use diff::DiffArgs;
pub(crate) use list::PodsArgs;
pub(crate) use listed::{attached, chain_text};
pub(crate) use listing::{
    API_VERSION, Around, Column, ListArgs, ListFormat, NOTHING, OUT_OF_TIME, PARTLY_UNKNOWN, ResourceList,
    ago,
};
pub(crate) use live::{NodeProcesses, observe};
pub(crate) use locate::LocatedNetns;
pub(crate) use own::{LookedPod, now};
pub(crate) use restore::RestoreArgs;
pub(crate) use select::SelectArgs;
pub(crate) use verify::{VerifyArgs, is_fine};
pub(crate) use view::{EvidenceSource, ListHead, Viewer, refuse_if_denied};
