//! What becomes of a running pod whose labels or annotations have changed: values in, a value out.
//!
//! A table decides, row by row, in the order of [`change`]. Nothing of a running pod's spec can change but its ephemeral containers, and those are
//! no facts.

use std::fmt;

use capture::Settings;
use capture::ambient::PodOptions;
use capture::settings::Mode;

/// `LIVE_UPDATES`: what a change of a running pod's labels and annotations does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum LiveUpdates {
    /// Nothing: the pod keeps the settings that it started with.
    Off,
    /// What no running proxy can suffer from is applied at once.
    #[default]
    Safe,
    /// Also a pod that is not to be captured any more is not, though its proxy runs.
    On,
}

/// A sidecar pod.
#[derive(Debug, Clone)]
pub struct LiveSidecar<'a> {
    /// What its rules were made from.
    pub in_force: InForce<'a>,
    /// What its labels and annotations say now.
    pub wanted: CaptureWish<'a>,
    /// Its proxy.
    pub proxy: Proxy,
}

/// What the rules of ours in a pod's namespace were made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InForce<'a> {
    /// No record says that we have loaded any, and nothing says that they are ours alone.
    Nothing,
    /// We have loaded them, and what they were made from is not known.
    Unknown,
    /// These.
    Settings(&'a Settings),
}

/// What is wanted of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaptureWish<'a> {
    /// Capture by these settings.
    Captured(&'a Settings),
    /// Capture, but an annotation cannot be used, for this reason.
    Invalid(String),
    /// No capture, for this reason.
    LeftAlone(String),
    /// The pod has ended, or is deleted.
    Ended,
}

/// The proxy of a sidecar pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proxy {
    /// The pod has no container for it.
    Absent,
    /// Nobody listens on its ports: it has not started yet, or has ended.
    Silent,
    /// It listens on its ports.
    Running,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveChange {
    /// Nothing.
    Nothing,
    /// Its rules are replaced by those of the wanted settings, in one transaction.
    Apply,
    /// It has no rules and is to have some. When they come, is the affair of the repair of pods that started without.
    Repair,
    /// Its rules stay as they are, and people hear why.
    Refuse(RefusedChange),
    /// Its rules go; connections that they redirected go on.
    Drain,
    /// What is known of it is dropped; its namespace is not entered.
    Forget,
}

/// Why the rules stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusedChange {
    /// An annotation cannot be used.
    Invalid(String),
    /// What the rules in force were made from is not known.
    Unknown,
    /// A running proxy cannot change how it is reached, or as whom it runs.
    OfTheProxy {
        /// What would change, for people.
        what: &'static str,
    },
    /// It is not to be captured any more, but its proxy runs.
    ProxyRuns(String),
    /// It has no proxy: its traffic would go nowhere.
    NoProxy,
}

/// What a change of a sidecar pod's labels and annotations does.
#[must_use]
pub fn change(pod: &LiveSidecar<'_>, updates: LiveUpdates) -> LiveChange {
    let has_rules = pod.in_force != InForce::Nothing;
    match &pod.wanted {
        CaptureWish::Ended => LiveChange::Forget,
        CaptureWish::Captured(_) if pod.proxy == Proxy::Absent => LiveChange::Refuse(RefusedChange::NoProxy),
        // That it starts without rules is not a change of its settings.
        CaptureWish::Captured(_) if !has_rules && pod.proxy == Proxy::Running => LiveChange::Repair,
        _ if !has_rules || updates == LiveUpdates::Off => LiveChange::Nothing,
        CaptureWish::Invalid(why) => LiveChange::Refuse(RefusedChange::Invalid(why.clone())),
        CaptureWish::Captured(wanted) => changed_settings(pod, wanted),
        CaptureWish::LeftAlone(why) if pod.proxy == Proxy::Running && updates == LiveUpdates::Safe => {
            LiveChange::Refuse(RefusedChange::ProxyRuns(why.clone()))
        }
        CaptureWish::LeftAlone(_) => LiveChange::Drain,
    }
}

fn changed_settings(pod: &LiveSidecar<'_>, wanted: &Settings) -> LiveChange {
    let InForce::Settings(in_force) = pod.in_force else { return LiveChange::Refuse(RefusedChange::Unknown) };
    if in_force == wanted {
        return LiveChange::Nothing;
    }
    if let Some(what) = of_the_proxy(in_force, wanted) {
        return LiveChange::Refuse(RefusedChange::OfTheProxy { what });
    }
    match pod.proxy {
        Proxy::Running => LiveChange::Apply,
        // It comes again when the proxy listens.
        Proxy::Silent | Proxy::Absent => LiveChange::Nothing,
    }
}

/// The first setting that a proxy takes at its start only and that is another one.
fn of_the_proxy(old: &Settings, new: &Settings) -> Option<&'static str> {
    let rows = [
        ("the interception mode", old.mode != new.mode),
        ("the proxy's outbound port", old.proxy_port != new.proxy_port),
        ("the proxy's inbound port", old.capture_port != new.capture_port),
        ("the proxy's tunnel port", old.tunnel_port != new.tunnel_port),
        ("the proxy's user", old.proxy_uids != new.proxy_uids),
        ("the proxy's group", old.proxy_gids != new.proxy_gids),
        ("the mark or the routing table of TPROXY", tproxy(old) != tproxy(new)),
    ];
    rows.into_iter().find(|(_, differs)| *differs).map(|(what, _)| what)
}

fn tproxy(settings: &Settings) -> Option<(u32, u32)> {
    (settings.mode == Mode::Tproxy).then_some((settings.tproxy_mark, settings.tproxy_table))
}

/// Whether the options of an ambient pod's annotations are applied to its rules.
#[must_use]
pub fn applies_options(in_force: &PodOptions, wanted: &PodOptions, updates: LiveUpdates) -> bool {
    updates != LiveUpdates::Off && in_force != wanted
}

// === impl LiveUpdates ===

impl LiveUpdates {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::Safe, Self::On];

    /// As the option has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Safe => "safe",
            Self::On => "on",
        }
    }

    /// Reads the option.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|updates| updates.name() == text)
    }
}

// === impl RefusedChange ===

impl RefusedChange {
    /// The reason of the Event about it.
    #[must_use]
    pub fn event_reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "CaptureSettingsInvalid",
            Self::Unknown | Self::OfTheProxy { .. } | Self::ProxyRuns(_) | Self::NoProxy => {
                "CaptureChangeNeedsRestart"
            }
        }
    }
}

impl fmt::Display for RefusedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(why) => write!(f, "{why}; the rules of before stay in force"),
            Self::Unknown => f.write_str(
                "it is not known which settings the pod's rules were made from, so they stay as they are; delete the pod to apply the change",
            ),
            Self::OfTheProxy { what } => write!(
                f,
                "{what} has changed, which a running proxy cannot follow; the rules of before stay in force; delete the pod to apply the change"
            ),
            Self::ProxyRuns(why) => write!(
                f,
                "the pod is not to be captured any more ({why}), but its proxy runs; its rules stay in force; delete the pod to apply the change"
            ),
            Self::NoProxy => f.write_str(
                "the pod is to be captured, but has no istio-proxy container, so its traffic would go nowhere; delete the pod, so that one is injected",
            ),
        }
    }
}

#[cfg(test)]
mod tests;
