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
    /// What the rules of ours were made from; nothing where it has none, or no record says that they are ours alone.
    pub in_force: Option<&'a Settings>,
    /// What its labels and annotations say now.
    pub wanted: CaptureWish<'a>,
    /// Its proxy.
    pub proxy: Proxy,
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
}

/// The proxy of a sidecar pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proxy {
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
    /// Its rules stay as they are, and people hear why.
    Refuse(RefusedChange),
    /// Its rules go; connections that they redirected go on.
    Drain,
}

/// Why the rules stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusedChange {
    /// An annotation cannot be used.
    Invalid(String),
    /// A running proxy cannot change how it is reached, or as whom it runs.
    OfTheProxy {
        /// What would change, for people.
        what: &'static str,
    },
    /// It is not to be captured any more, but its proxy runs.
    ProxyRuns(String),
}

/// What a change of a sidecar pod's labels and annotations does. That one starts without rules is no change; when they come is the affair of the repair of such pods.
#[must_use]
pub fn change(pod: &LiveSidecar<'_>, updates: LiveUpdates) -> LiveChange {
    let Some(in_force) = pod.in_force.filter(|_| updates != LiveUpdates::Off) else {
        return LiveChange::Nothing;
    };
    match &pod.wanted {
        CaptureWish::Invalid(why) => LiveChange::Refuse(RefusedChange::Invalid(why.clone())),
        CaptureWish::Captured(wanted) => changed_settings(in_force, wanted, pod.proxy),
        CaptureWish::LeftAlone(why) if pod.proxy == Proxy::Running && updates == LiveUpdates::Safe => {
            LiveChange::Refuse(RefusedChange::ProxyRuns(why.clone()))
        }
        CaptureWish::LeftAlone(_) => LiveChange::Drain,
    }
}

fn changed_settings(in_force: &Settings, wanted: &Settings, proxy: Proxy) -> LiveChange {
    if in_force == wanted {
        return LiveChange::Nothing;
    }
    if let Some(what) = of_the_proxy(in_force, wanted) {
        return LiveChange::Refuse(RefusedChange::OfTheProxy { what });
    }
    match proxy {
        Proxy::Running => LiveChange::Apply,
        // It comes again when the proxy listens.
        Proxy::Silent => LiveChange::Nothing,
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
            Self::OfTheProxy { .. } | Self::ProxyRuns(_) => "CaptureChangeNeedsRestart",
        }
    }
}

impl fmt::Display for RefusedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(why) => write!(f, "{why}; the rules of before stay in force"),
            Self::OfTheProxy { what } => write!(
                f,
                "{what} has changed, which a running proxy cannot follow; the rules of before stay in force; delete the pod to apply the change"
            ),
            Self::ProxyRuns(why) => write!(
                f,
                "the pod is not to be captured any more ({why}), but its proxy runs; its rules stay in force; delete the pod to apply the change"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
