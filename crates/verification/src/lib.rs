//! When pods are verified, what a verification comes to, how often something is repaired, and who undid it: values in, values out. Times are
//! [`std::time::Duration`]s since a moment that the caller has chosen.

mod agenda;
mod culprit;
mod haste;
mod ledger;
mod relapse;
mod schedule;
mod state;

pub use agenda::Agenda;
pub use culprit::Culprit;
pub use haste::Haste;
pub use ledger::Ledger;
pub use relapse::{Permit, Relapses};
pub use schedule::{Due, Schedule};
pub use state::{DataPlaneMode, DriftAction, Drifted, Layer, UnverifiableReason, VerificationState};
