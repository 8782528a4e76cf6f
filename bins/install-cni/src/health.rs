//! Whether the agent lives and whether it is ready, and if not, for want of what.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyper::body::Bytes;
use hyper::{Request, StatusCode};

use crate::serve::{Answer, Handler, text};

/// What has to be in order for the agent to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The plugin, its kubeconfig and its configuration are in place.
    Install,
    /// The pods and namespaces of this node are known.
    Cluster,
    /// Plugins can ask.
    PluginSocket,
    /// Plugins can log.
    LogSocket,
    /// Plugins can announce pods.
    EventSocket,
    /// The pods of an earlier agent are taken over, and ztunnels are served.
    Ambient,
    /// The configuration directory can be used.
    Configuration,
}

/// The state of all parts. One that was never heard of is pending.
#[derive(Debug)]
pub(crate) struct Health(Mutex<BTreeMap<Part, Option<String>>>);

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Cluster => "cluster",
            Self::PluginSocket => "plugin socket",
            Self::LogSocket => "log socket",
            Self::EventSocket => "event socket",
            Self::Ambient => "ambient",
            Self::Configuration => "configuration",
        }
    }
}

impl Health {
    /// Ready when all of these are.
    pub(crate) fn of(parts: &[Part]) -> Self {
        let pending = |part: &Part| (*part, Some("has not begun".to_owned()));
        Self(Mutex::new(parts.iter().map(pending).collect()))
    }

    /// The part is in order.
    pub(crate) fn ready(&self, part: Part) {
        self.parts().insert(part, None);
    }

    /// The part is not in order, because of this.
    pub(crate) fn pending(&self, part: Part, reason: &dyn Display) {
        self.parts().insert(part, Some(reason.to_string()));
    }

    /// Whether the part is in order.
    pub(crate) fn is_ready(&self, part: Part) -> bool {
        matches!(self.parts().get(&part), Some(None))
    }

    /// What is not in order, a line for each; empty means ready.
    pub(crate) fn missing(&self) -> Vec<String> {
        let parts = self.parts();
        let missing = parts.iter().filter_map(|(part, reason)| reason.as_ref().map(|why| (part.name(), why)));
        missing.map(|(part, reason)| format!("{part}: {}", reason.replace('\n', " "))).collect()
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<Part, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Health {
    const MAX_BODY: usize = 0;

    async fn answer(&self, request: &Request<()>, _: Bytes) -> Answer {
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.missing() {
                missing if missing.is_empty() => text(StatusCode::OK, "ok\n"),
                missing => {
                    let body = format!("Service Unavailable\n{}\n", missing.join("\n"));
                    text(StatusCode::SERVICE_UNAVAILABLE, body)
                }
            },
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }
}
