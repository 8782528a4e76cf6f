//! Which pods are captured and how.
//!
//! Pure: pod facts and configuration go in, a decision and a plan come out; nothing here looks at the world.

pub mod pod;

pub use pod::{Container, Pod, PodId};
