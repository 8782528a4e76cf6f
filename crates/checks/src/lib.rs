//! What a check of a node finds. The agent makes its periodic checks by this, `cnictl doctor` its own, and both say it in the same words.
//!
//! A check is a row of the [`catalogue`]; what it comes to is a [`CheckResult`]; all of them are a [`CheckReport`], which programs read as JSON.

pub mod catalogue;
mod report;

pub use catalogue::CheckSpec;
pub use report::{API_VERSION, CheckReport, Worst};

use serde::{Deserialize, Serialize};

/// The document that hints lead into.
pub const DOCUMENT: &str = "docs/troubleshooting.md";

/// What a check comes to, from good to bad. What is not known is never taken for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// In order.
    Ok,
    /// There is nothing to look at here, as with an option that is off.
    Skipped,
    /// It could not be looked at.
    Unknown,
    /// It works, and people should know.
    Warning,
    /// It does not work.
    Failed,
}

/// Part of a node that checks are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckSection {
    /// What the kernel has and how full it is.
    Kernel,
    /// Parts of the kernel that may be modules.
    Modules,
    /// The container runtime and its directories.
    Runtime,
    /// The plugin, its configuration, the agent.
    Installation,
    /// Other meshes and network components.
    Meshes,
    /// The API server and cluster DNS.
    Cluster,
    /// The pods of the node.
    Pods,
    /// The node's own network namespace.
    Host,
}

/// What one check came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// As in the catalogue, such as `kernel.conntrack`.
    pub id: String,
    /// The part of the node.
    pub section: CheckSection,
    /// What it came to.
    pub state: CheckState,
    /// What was found: for a failure the cause first.
    pub text: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Where more is said, such as `docs/troubleshooting.md#conntrack`; only where something is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<String>,
    /// What is looked at.
    pub looks_at: String,
    /// Seconds that it took.
    pub seconds: f64,
}

/// What a check found, without what the catalogue says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckFinding {
    /// What it came to.
    pub state: CheckState,
    /// What was found.
    pub text: String,
    /// What to do.
    pub advice: Option<String>,
}

// === impl CheckState ===

impl CheckState {
    /// The sign that people see.
    #[must_use]
    pub fn sign(self) -> char {
        match self {
            Self::Ok => '√',
            Self::Skipped | Self::Unknown => '–',
            Self::Warning => '‼',
            Self::Failed => '×',
        }
    }

    /// The word, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }

    /// Whether people have something to do about it.
    #[must_use]
    pub fn is_wrong(self) -> bool {
        matches!(self, Self::Warning | Self::Failed)
    }
}

// === impl CheckSection ===

impl CheckSection {
    /// All of them, as they are shown.
    pub const ALL: [Self; 8] = [
        Self::Kernel,
        Self::Modules,
        Self::Runtime,
        Self::Installation,
        Self::Meshes,
        Self::Cluster,
        Self::Pods,
        Self::Host,
    ];

    /// The word, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Modules => "modules",
            Self::Runtime => "runtime",
            Self::Installation => "installation",
            Self::Meshes => "meshes",
            Self::Cluster => "cluster",
            Self::Pods => "pods",
            Self::Host => "host",
        }
    }
}

// === impl CheckFinding ===

impl CheckFinding {
    /// In order.
    #[must_use]
    pub fn ok(text: impl Into<String>) -> Self {
        Self { state: CheckState::Ok, text: text.into(), advice: None }
    }

    /// There is nothing to look at.
    #[must_use]
    pub fn skipped(text: impl Into<String>) -> Self {
        Self { state: CheckState::Skipped, text: text.into(), advice: None }
    }

    /// It could not be looked at.
    #[must_use]
    pub fn unknown(text: impl Into<String>) -> Self {
        Self { state: CheckState::Unknown, text: text.into(), advice: None }
    }

    /// It works, and people should know.
    #[must_use]
    pub fn warning(text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: CheckState::Warning, text: text.into(), advice: Some(advice.into()) }
    }

    /// It does not work.
    #[must_use]
    pub fn failed(text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: CheckState::Failed, text: text.into(), advice: Some(advice.into()) }
    }

    /// The finding with what the catalogue says of its check.
    #[must_use]
    pub fn of(self, check: &CheckSpec, seconds: f64) -> CheckResult {
        CheckResult {
            id: check.id.to_owned(),
            section: check.section,
            state: self.state,
            text: self.text,
            advice: self.advice.filter(|advice| !advice.is_empty()),
            more: self.state.is_wrong().then(|| check.more()),
            looks_at: check.looks_at.to_owned(),
            seconds,
        }
    }
}

impl std::fmt::Display for CheckFinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)?;
        self.advice
            .as_ref()
            .filter(|advice| !advice.is_empty())
            .map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}
