//! Pods of sidecar mode. Only its start captures such a pod: of one that started without its rules, or with a part of them, people are told, and what
//! deletes such pods finds it by its label.

mod rate;

use std::fmt;

pub use rate::DeletionRate;

/// What is wanted of a pod that started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aim {
    /// A sidecar's rules capture it.
    Captured,
    /// It is not one to capture, whatever was said of its start.
    LeftAlone,
}

/// What is known of one start of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Started {
    /// What it started with.
    pub capture: Capture,
    /// The label by which pods without capture are found.
    pub label: Labelled,
    /// Whether it is deleted, so that its controller starts another one.
    pub removal: Removal,
    /// The pod has its Event.
    pub told: bool,
    /// No agent has to do anything about this start any more.
    pub settled: bool,
}

/// What a pod started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capture {
    /// All of its rules.
    Whole,
    /// Rules that do not capture all of its traffic, or nobody is certain that they do. Its next start would be no better.
    Part,
    /// None.
    None,
}

/// The label by which pods without capture are found, and deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Labelled {
    /// The pod does not have it yet.
    Missing,
    /// It has it.
    Given,
    /// It is not to have it: nothing would start it anew, or there is no right to give it.
    Barred,
}

/// Whether a pod without capture is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Removal {
    /// It is not.
    Unwanted,
    /// It is to be.
    Due,
    /// It was.
    Done,
}

/// One thing that is done for a pod that started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The pod is deleted.
    Delete,
    /// The pod gets the label.
    Label,
    /// The pod gets an Event.
    Tell,
    /// It is written down, for the next agent too, that there is nothing left to do.
    Settle,
}

/// What keeps an act from ever being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hindrance {
    /// The pod is gone or on its way, another one has its name, or it is not without capture any more.
    Gone,
    /// There is no right to label pods.
    NoLabels,
    /// There is no right to write Events.
    NoEvents,
}

/// The acts that lead from what is known of a start to what is wanted; none where nothing is left to do. The label comes first: it is what the pod is
/// found by. A pod that is deleted needs none.
pub fn steps(want: Aim, have: &Started) -> Vec<Step> {
    let lacks = want == Aim::Captured && have.capture != Capture::Whole;
    let none = lacks && have.capture == Capture::None && !have.told;
    let unlabelled = have.label == Labelled::Missing && have.removal == Removal::Unwanted;
    let mut acts = Vec::new();
    if have.settled {
        return acts;
    }
    acts.extend((none && have.removal == Removal::Due).then_some(Step::Delete));
    acts.extend((none && unlabelled).then_some(Step::Label));
    acts.extend((lacks && !have.told).then_some(Step::Tell));
    acts.push(Step::Settle);
    acts
}

// === impl Started ===

impl Started {
    /// A start of which nobody was told yet.
    pub fn new(capture: Capture) -> Self {
        let (label, removal) = (Labelled::Missing, Removal::Unwanted);
        Self { capture, label, removal, told: false, settled: false }
    }

    /// An act is done. Nothing else writes down what an act does.
    pub fn after(&mut self, act: Step) {
        match act {
            Step::Delete => self.removal = Removal::Done,
            Step::Label => self.label = Labelled::Given,
            Step::Tell => self.told = true,
            Step::Settle => self.settled = true,
        }
    }

    /// An act cannot be done.
    pub fn see(&mut self, hindrance: Hindrance) {
        match hindrance {
            // Nobody is left who could be told of it.
            Hindrance::Gone => self.told = true,
            Hindrance::NoLabels => self.label = Labelled::Barred,
            Hindrance::NoEvents => self.told = true,
        }
    }
}

// === impl Step ===

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delete => "delete",
            Self::Label => "label",
            Self::Tell => "tell",
            Self::Settle => "settle",
        })
    }
}

#[cfg(test)]
mod tests;
