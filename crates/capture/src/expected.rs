//! Which rules of sidecar mode a pod that runs should have: the same table that decides its ADD, and why the others have none.

use crate::annotations::{AnnotationError, INJECT, NodeSettings};
use crate::decide::{Decision, Enrolment, Exclusions, Reason, Skip, decide};
use crate::pod::Pod;
use crate::settings::Settings;
use crate::values::parse_bool;

/// Label of a namespace that turns injection on or off for its pods.
pub const INJECTION: &str = "istio-injection";
/// Label of a pod or a namespace that names the control plane whose injector is meant.
pub const REVISION: &str = "istio.io/rev";

/// What a pod should have of sidecar mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Rules by these settings.
    Captured(Box<Settings>),
    /// Rules, and which cannot be told: its ADD fails.
    Unusable(AnnotationError),
    /// None.
    Outside(Outside),
}

/// Why a pod should have no rules of sidecar mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// The decision leaves it alone.
    Skip(Skip),
    /// It is of ambient mode, or that cannot be told yet.
    Ambient,
    /// Its own init container `istio-init` sets its rules.
    Foreign,
    /// Labels ask for injection, and it has no proxy: it runs outside of the mesh and nobody meant it. The text says which label.
    NotInjected(String),
}

/// What a pod should have. `pod` has the labels of its namespace where they are known.
pub fn expected(pod: &Pod, scope: &Exclusions, enrolment: &Enrolment, node: &NodeSettings) -> Expected {
    match decide(pod, scope, enrolment, node) {
        Ok(Decision::Sidecar { settings, .. }) => Expected::Captured(settings),
        Err(error) => Expected::Unusable(error),
        Ok(Decision::Ambient | Decision::Unknown(_)) => Expected::Outside(Outside::Ambient),
        Ok(Decision::Skip(skip)) => Expected::Outside(match skip.reason {
            Reason::IstioInitPresent => Outside::Foreign,
            Reason::NoProxy => injection_label(pod).map_or(Outside::Skip(skip), Outside::NotInjected),
            _ => Outside::Skip(skip),
        }),
    }
}

/// The label that asks for injection, `key=value`, unless another one turns it off: what the webhooks of Istio's injector select by.
pub fn injection_label(pod: &Pod) -> Option<String> {
    let of_namespace = |key: &str| pod.namespace_labels.as_ref()?.get(key).map(String::as_str);
    let of_pod = |key: &str| pod.labels.get(key).map(String::as_str);
    let inject = of_pod(INJECT).and_then(parse_bool);
    let annotated = pod.annotations.get(INJECT).and_then(|text| parse_bool(text));
    let is_off = inject == Some(false)
        || (inject.is_none() && annotated == Some(false))
        || of_namespace(INJECTION) == Some("disabled");
    if is_off {
        return None;
    }
    let text = |key: &str, value: &str| Some(format!("{key}={value}"));
    match (of_namespace(INJECTION), of_namespace(REVISION), of_pod(REVISION)) {
        (Some("enabled"), _, _) => text(INJECTION, "enabled"),
        (None, Some(revision), _) | (None, None, Some(revision)) if !revision.is_empty() => {
            text(REVISION, revision)
        }
        (None, None, None) if inject == Some(true) => text(INJECT, "true"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
