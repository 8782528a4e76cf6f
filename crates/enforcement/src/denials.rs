//! What policies deny: packets that rules have logged become records, by which the last are known, counted and told.
//!
//! Whoever reads a log puts packets together ([`DenialBatch`]); the task of policies says who they were of (`join.rs`); [`DenialBook`] numbers the
//! records and adds how many more were denied, by the counters of the rules.

mod batch;
mod book;
mod events;
mod join;
#[cfg(test)]
mod tests;

pub use batch::{DenialBatch, DeniedPacket};
pub use book::{CountedDenials, DenialBook};
pub use events::{DenialEvent, DenialEvents};
pub(crate) use join::{LoggedClasses, join};
