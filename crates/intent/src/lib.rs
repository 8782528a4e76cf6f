//! What is wanted of a pod, what it has, and the acts that lead from the one to the other: values in, values out. Those of ambient mode are here, those
//! of sidecar mode in [`sidecar`]. What becomes of a running pod whose settings change is in [`live`].
//!
//! ```no_run
//! use intent::{Act, Birth, Have, RedirectionMark, Want, steps};
//!
//! let mut have = Have::new();
//! let want = Want::In { addresses: vec!["10.0.0.1".parse().unwrap()] };
//! // What is planned ends with an act whose result nobody knows before: where the pod is.
//! assert_eq!(steps(&want, &have, Birth::Running).last(), Some(&Act::Locate));
//! have.after(&Act::Locate, 0);
//! let acts = steps(&want, &have, Birth::Running);
//! for act in &acts {
//!     have.begin(act);
//!     have.after(act, 0);
//! }
//! assert_eq!(acts.last(), Some(&Act::Annotate(Some(RedirectionMark::Enabled))));
//! assert!(steps(&want, &have, Birth::Running).is_empty());
//! ```

mod act;
mod have;
pub mod live;
pub mod sidecar;
mod steps;

pub use act::Act;
pub use have::{Have, Look, Observation, PodNetns, Probes, RedirectionMark, Rules, Ztunnel};
pub use steps::{Birth, Want, steps};

#[cfg(test)]
mod tests;
