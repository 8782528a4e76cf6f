//! `pods`, `verify`, `diff` and `restore`: the pods of this node, which should be captured, which are, and by what evidence.
//!
//! The agent answers from what it verifies all the time. Without it the same is found by a look of this program: pods from files of the run
//! directory, their namespaces by records, mounts and processes, the rules from the kernel. Only `restore` writes, and it asks the agent to.

mod disk;
mod list;
mod listing;
mod locate;
mod own;
mod select;
mod verify;
mod view;

pub(crate) use list::PodsArgs;
pub(crate) use verify::VerifyArgs;
