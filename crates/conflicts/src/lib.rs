//! What rules and settings of others change in a network namespace that has rules of ours: values in, values out.
//!
//! Rules of ours may be as planned and capture nothing, because others have rules before or after them. So [`follow`] takes a packet through
//! everything that is there, and [`conflicts`] asks it, and the namespace's settings, what is in the way of a plan. Whatever could not be
//! read may do anything: then the answer is "unknown", and never "captured".

mod catalogue;
mod conflict;
mod follow;
mod observed;
mod proxy;
#[cfg(test)]
mod sample;

pub use catalogue::{Examined, conflicts, examine};
pub use conflict::{Conflict, ConflictId, ConflictPlace, Resolution, Severity};
pub use follow::{Arrival, LiveEnd, LivePath, LiveRule, LiveStop, arrival, follow};
pub use observed::{
    BpfProgram, LookedAt, NetnsScope, ObservedAddress, ObservedLink, ObservedListener, ObservedNetns,
    ObservedProcess, ObservedRoute, RoutingRule, RuleLookup,
};
pub use proxy::PlannedProxy;
