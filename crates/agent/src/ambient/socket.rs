//! `pluginevent.sock`: the plugin announces a pod and hears whether it is in the mesh.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capture::Reason;
use capture::decide::Membership;
use cluster::FetchError;
use facts::{Facts, PodRef, Unfit};
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode};
use rundir::EVENT_SOCKET_NAME;
use telemetry::Level;

use super::Ambient;
use super::desired::{self, REDIRECTION};
use super::event::StartingPod;
use super::failure::AmbientFailure;
use super::ports::NetnsSource;
use serve::{Descriptor, Handler, ServedAnswer, UnixPeer, text};

/// As in the original. Whoever is neither root nor this agent's user is refused all the same: an event makes this agent program
/// the namespace that it names.
pub(crate) const MODE: u32 = 0o666;
/// The runtime starts a pod milliseconds after the API server has it, so the watch may be behind.
const LOOKUPS: u32 = 11;
const LOOKUP_PAUSE: Duration = Duration::from_millis(10);
/// How long the API server is asked for a pod that the watch has not brought by then.
const FETCH_LIMIT: Duration = Duration::from_secs(2);
/// Seconds after which a plugin may announce a pod again that is not taken yet. The original's plugin does not look at it.
const RETRY_AFTER: &str = "1";

/// Answers plugins.
pub(crate) struct EventSocket {
    pub(crate) ambient: Arc<Ambient>,
}

/// A plugin that waits for its answer.
struct Plugin(Option<UnixPeer>);

/// Why a pod that the plugin announced is not enrolled.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("pod {pod} is not known on this node yet: {cause}; the runtime tries again")]
    Unknown { pod: String, cause: FetchError },
    #[error("the labels of the namespace of pod {0} are not known yet; the runtime tries again")]
    NeedsNamespace(String),
    #[error("pod {pod} does not belong to the mesh: {reason}")]
    NotEligible { pod: String, reason: String },
    #[error("pod {0} has no uid, which tells it from a later pod of the same name")]
    NoUid(String),
    #[error("pod {pod} is not in the mesh: {}", fault::message(failure))]
    Failed { pod: String, failure: AmbientFailure },
    #[error("the agent is not ready yet; the runtime tries again")]
    NotReady,
    #[error(
        "the plugin that announced pod {0} closed the connection before the answer; the pod's setup was undone"
    )]
    HungUp(String),
    #[error("the agent is ending")]
    Ending,
}

impl Refusal {
    /// Whether it says nothing about this pod: the log and `/readyz` tell of it once for all of them.
    fn is_of_the_node(&self) -> bool {
        match self {
            Self::NotReady => true,
            Self::Failed { failure, .. } => failure.cause().is_some(),
            _ => false,
        }
    }
}

impl Plugin {
    fn has_hung_up(&self) -> bool {
        self.0.as_ref().is_some_and(UnixPeer::has_hung_up)
    }
}

impl Handler for EventSocket {
    const NAME: &'static str = EVENT_SOCKET_NAME;
    /// An event with as many addresses as we take, and some room.
    const MAX_BODY: usize = 64 << 10;
    /// The pod's network namespace, from plugins of ours.
    const TAKES_DESCRIPTORS: bool = true;

    async fn answer(&self, request: &Request<()>, body: Bytes) -> ServedAnswer {
        if request.uri().path() != rundir::EVENT_PATH {
            return self.counted(text(StatusCode::NOT_FOUND, "404 page not found\n"));
        }
        let event = match StartingPod::parse(&body) {
            Ok(event) => event,
            Err(error) => {
                self.ambient.log.warn("a plugin's event cannot be read", &[("error", &error)]);
                return self.counted(text(StatusCode::BAD_REQUEST, format!("{error}\n")));
            }
        };
        // A plugin that hangs up must not leave a pod half way: the work goes on, and takes everything back.
        let ambient = self.ambient.clone();
        let plugin = Plugin(request.extensions().get::<UnixPeer>().cloned());
        let pod = format!("{}/{}", event.namespace, event.name);
        let descriptor = request.extensions().get::<Descriptor>().cloned();
        let work = tokio::spawn(async move {
            let result = ambient.clone().announced(event, descriptor, &plugin).await;
            if let Err(refusal) = &result {
                // Also where nobody waits for an answer.
                let level = if refusal.is_of_the_node() { Level::Debug } else { Level::Warn };
                ambient.log.log(level, refusal, &[("pod", &pod)]);
            }
            result
        });
        match work.await.unwrap_or(Err(Refusal::Ending)) {
            Ok(()) => self.counted(text(StatusCode::OK, "")),
            Err(refusal) => {
                let mut answer = text(StatusCode::INTERNAL_SERVER_ERROR, format!("{refusal}\n"));
                if refusal.may_pass() {
                    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
                }
                self.counted(answer)
            }
        }
    }

    fn unreadable(&self, _: &Request<()>, status: StatusCode, reason: String) -> ServedAnswer {
        self.ambient.log.warn("a plugin's event was not received", &[("error", &reason)]);
        self.counted(text(status, reason + "\n"))
    }
}

impl Refusal {
    /// Whether the pod may be taken a moment later, without a change of the pod or of the options.
    fn may_pass(&self) -> bool {
        match self {
            Self::Unknown { .. } | Self::NeedsNamespace(_) | Self::NotReady | Self::Ending => true,
            Self::Failed { failure, .. } => failure.is_absence(),
            Self::NotEligible { .. } | Self::NoUid(_) | Self::HungUp(_) => false,
        }
    }
}

impl EventSocket {
    fn counted(&self, answer: ServedAnswer) -> ServedAnswer {
        self.ambient.metrics.plugin_request(answer.status().as_u16());
        answer
    }
}

/// Whether a pod that a plugin announces although the options leave it alone starts all the same: the plugin was started before its
/// configuration said so, or does not know what the agent knows.
fn starts_anyway(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::CaptureDisabled | Reason::ExcludedNamespace | Reason::OwnAgentPod | Reason::Ztunnel
    )
}

impl Ambient {
    async fn announced(
        self: Arc<Self>,
        event: StartingPod,
        descriptor: Option<Descriptor>,
        plugin: &Plugin,
    ) -> Result<(), Refusal> {
        let name = format!("{}/{}", event.namespace, event.name);
        if self.node.host.get().is_none() {
            return Err(Refusal::NotReady);
        }
        if self.life.ending.get().is_some() {
            // The plugin is being taken off the node, and the pod would be taken out again at once.
            self.log.warn(
                "pod starts without capture: everything is being removed from this node",
                &[("pod", &name)],
            );
            return Ok(());
        }
        let facts = self.look_up(&event).await;
        let facts = facts.map_err(|cause| Refusal::Unknown { pod: name.clone(), cause })?;
        let rules = self.config.rules.now();
        match rules.membership(&facts, false) {
            Membership::In => {}
            Membership::Unknown(_) => return Err(Refusal::NeedsNamespace(name)),
            Membership::Out(skip) if starts_anyway(skip.reason) => {
                let text = format!("pod starts without capture: {}", skip.text());
                self.log.warn(text, &[("pod", &name)]);
                return Ok(());
            }
            Membership::Out(skip) => {
                return Err(Refusal::NotEligible { pod: name, reason: skip.text() });
            }
        }
        let uid = facts.pod.uid().ok_or_else(|| Refusal::NoUid(name.clone()))?.to_owned();
        let key = PodRef { namespace: event.namespace, name: event.name, uid };
        let place = match event.netns.is_empty() {
            true => NetnsSource::Running,
            false => NetnsSource::Given { path: event.netns, descriptor, called: event.uid },
        };
        let result = self.admit(&key, &facts, &event.ips, place, plugin).await;
        // The annotation is the queue's affair: neither the API server nor its absence delays a pod. One that says of the sandbox before that it is
        // in the mesh goes when the next one fails.
        let claims = || facts.pod.annotation(REDIRECTION).is_some_and(desired::claims);
        if matches!(result, Some(Ok(()))) || claims() {
            self.pods.queue.push(key.clone());
        }
        let Some(result) = result else { return Err(Refusal::HungUp(name)) };
        match result {
            Ok(()) => {
                self.telling.troubles.solved(&key.uid, Instant::now());
                self.telling.waiting.over(&key.uid);
                Ok(())
            }
            Err(failure) => {
                self.telling.troubles.note(&key.uid, failure.reason(), fault::message(&failure));
                if let Some(message) = self.note_waiting(&key, &failure) {
                    let ambient = self.clone();
                    tokio::spawn(async move { ambient.tell_that_it_waits(&key, &message).await });
                }
                Err(Refusal::Failed { pod: name, failure })
            }
        }
    }

    /// Takes an announced pod in. An ADD that fails leaves nothing of it to enrol: the runtime takes the namespace down, or lets the pod start without
    /// capture. Nothing comes of it where the plugin hung up, which ends its ADD without success.
    async fn admit(
        &self,
        key: &PodRef,
        facts: &Facts,
        ips: &[IpAddr],
        place: NetnsSource,
        plugin: &Plugin,
    ) -> Option<Result<(), AmbientFailure>> {
        let _turn = self.pods.members.turn(&key.uid).await;
        if plugin.has_hung_up() {
            return None;
        }
        let before = self.pods.members.get(&key.uid);
        let is_given = matches!(place, NetnsSource::Given { .. });
        let result = self.enrol(key, facts, ips, place).await.map(drop);
        let hung_up = plugin.has_hung_up();
        if is_given && (result.is_err() || hung_up) {
            self.give_up(key, before).await;
        }
        (!hung_up).then_some(result)
    }

    /// What is known of the pod with its namespace. Where the watch has not brought it in its usual time, the API server is asked.
    async fn look_up(&self, event: &StartingPod) -> Result<Facts, FetchError> {
        if self.manifests {
            // The plugin has just read them. What cannot be looked at counts as it was.
            let looked = self.cluster.fetch(&event.namespace, &event.name, FETCH_LIMIT).await;
            return self.current(event).ok_or(looked.err().unwrap_or(FetchError::NotFound));
        }
        for lookup in 0..LOOKUPS {
            if lookup > 0 {
                tokio::time::sleep(LOOKUP_PAUSE).await;
            }
            if let Some(facts) = self.current(event) {
                return Ok(facts);
            }
        }
        self.cluster.fetch(&event.namespace, &event.name, FETCH_LIMIT).await?;
        // A fetched pod that has ended is the one before, whose name it has.
        self.current(event).ok_or(FetchError::NotFound)
    }

    fn current(&self, event: &StartingPod) -> Option<Facts> {
        let found = self.cluster.index().facts(&event.namespace, &event.name);
        // Nor is it the pod that had the name before, which the watch has not seen go.
        let uid = event.uid.clone().unwrap_or_default();
        let id = PodRef { uid, ..PodRef::named(&*event.namespace, &*event.name) };
        let found = found.filter(|facts| !matches!(facts.pod.check(&id), Err(Unfit::Stale { .. })));
        // One that has ended gets no sandbox: the one that is announced has its name and is not known yet.
        found.filter(|facts| facts.namespace_labels.is_some() && !facts.pod.is_terminal())
    }
}
