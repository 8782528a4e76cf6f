//! Which pods are captured and how.
//!
//! Pure: pod facts and configuration go in, a [`decide::Decision`] and a [`ruleset::Plan`] come out; nothing here looks at the
//! world.

pub mod ambient;
pub mod annotations;
pub mod decide;
mod exempt;
pub mod expected;
pub mod flags;
mod inputs;
pub mod plan;
pub mod pod;
pub mod select;
pub mod settings;
pub mod values;

pub use decide::{
    Decision, Enrolment, Exclusions, Membership, Need, Reason, Skip, decide, decide_by_name, membership,
};
pub use expected::{Expected, Outside, expected};
pub use inputs::{PlanInputs, SettingChange, setting_changes};
pub use plan::{PlanTarget, plan};
pub use pod::{Container, Pod};
pub use settings::Settings;
