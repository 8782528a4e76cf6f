//! The rows of pods that may have a sidecar, which need the whole pod.

use super::{Decision, PROXY_CONTAINER, Reason, Skip};
use crate::annotations::{
    AnnotationError, DISABLE_ENVOY, INJECT, NodeSettings, PodSettings, STATUS, parse_settings, proxy_variable,
};
use crate::exempt;
use crate::pod::{Container, Pod};
use crate::values::{Quoted, parse_bool, printable};

pub(super) const INIT_CONTAINER: &str = "istio-init";

/// The decision for a pod that is not of ambient mode, for the reason `otherwise`.
///
/// # Errors
/// The pod is to be captured, but an annotation cannot be used.
pub(super) fn decide(
    pod: &Pod,
    node: &NodeSettings,
    otherwise: Option<Reason>,
) -> Result<Decision, AnnotationError> {
    let view = View::of(pod);
    for (reason, found) in TABLE {
        if let Some(mut detail) = found(&view) {
            if let (Reason::NoProxy, Some(otherwise @ Reason::NotSelected)) = (reason, otherwise) {
                detail = format!("{detail}; {}", otherwise.text());
            }
            return Ok(Decision::Skip(Skip { reason: *reason, detail }));
        }
    }
    match parse_settings(pod, &view.proxy, node)? {
        PodSettings::None => Ok(Decision::Skip(Skip {
            reason: Reason::InterceptionNone,
            detail: "annotation sidecar.istio.io/interceptionMode is NONE".to_owned(),
        })),
        PodSettings::Capture { settings, mut warnings } => {
            let native_sidecar =
                pod.init_containers.iter().any(|c| c.name == PROXY_CONTAINER && c.restarts_always);
            if !native_sidecar && !pod.containers.iter().any(|c| c.name == PROXY_CONTAINER) {
                warnings.push(
                    "istio-proxy is an init container without restartPolicy Always: it ends before the pod's \
                     containers start, and their traffic will find no proxy"
                        .to_owned(),
                );
            }
            let exempt = exempt::find(pod, &view.proxy, &settings);
            warnings.extend(exempt.warnings);
            Ok(Decision::Sidecar { settings, native_sidecar, warnings, gaps: exempt.gaps })
        }
    }
}

/// A row holds when it finds something; the text says what.
pub(super) type Row = (Reason, fn(&View<'_>) -> Option<String>);

pub(super) const TABLE: &[Row] = &[
    (Reason::IstioInitPresent, |view| {
        view.container(INIT_CONTAINER).map(|_| "container istio-init".to_owned())
    }),
    (Reason::EnvoyDisabled, |view| {
        let disabled = proxy_variable(&view.proxy, DISABLE_ENVOY).and_then(parse_bool);
        (disabled == Some(true)).then(|| "DISABLE_ENVOY is true on istio-proxy".to_owned())
    }),
    (Reason::NoProxy, |view| view.proxy.is_empty().then(|| format!("containers: {}", view.names()))),
    (Reason::NotASidecar, |view| {
        view.proxy_type()
            .filter(|kind| *kind != "sidecar")
            .map(|kind| format!("proxy type {}", Quoted::new(kind)))
    }),
    (Reason::InjectFalse, |view| view.inject_false()),
    (Reason::NoStatus, |view| {
        (!view.pod.annotations.contains_key(STATUS)).then(|| format!("annotation {STATUS} is absent"))
    }),
];

/// A pod as the table looks at it.
pub(super) struct View<'a> {
    pod: &'a Pod,
    /// Every container of the proxy's name, init containers first.
    proxy: Vec<&'a Container>,
}

impl<'a> View<'a> {
    fn of(pod: &'a Pod) -> Self {
        Self { pod, proxy: pod.all_containers().filter(|c| c.name == PROXY_CONTAINER).collect() }
    }

    fn container(&self, name: &str) -> Option<&'a Container> {
        self.pod.all_containers().find(|c| c.name == name)
    }

    fn names(&self) -> String {
        self.pod.all_containers().map(|c| printable(&c.name)).collect::<Vec<_>>().join(", ")
    }

    /// `proxy <type> …` as the proxy's arguments; the last container that says it counts.
    fn proxy_type(&self) -> Option<&'a str> {
        self.proxy.iter().rev().find_map(|c| match c.args.as_slice() {
            [program, kind, ..] if program == "proxy" => Some(kind.as_str()),
            _ => None,
        })
    }

    /// The label, where present, hides the annotation, even when it is no boolean.
    fn inject_false(&self) -> Option<String> {
        let (kind, text) = match self.pod.labels.get(INJECT) {
            Some(text) => ("label", text),
            None => ("annotation", self.pod.annotations.get(INJECT)?),
        };
        (parse_bool(text) == Some(false)).then(|| format!("{kind} {INJECT} is {text}"))
    }
}
