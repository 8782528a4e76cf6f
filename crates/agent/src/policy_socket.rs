//! What plugins ask about the policies of a pod that starts or ends, and who answers.

#[cfg(test)]
pub(crate) mod tests;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use enforcement::DenialBook;
use hyper::StatusCode;
use policy::snapshot::PolicySnapshot;
use rundir::policy::{PolicyStateReport, PrepareAnswer, PrepareRequest, ReleaseRequest};
use serde::de::DeserializeOwned;
use serve::{Descriptor, ServedAnswer, text};
use tokio::sync::watch;

use crate::plugin_socket::answer;

/// How long the task of policies may take for a pod. A plugin waits a second, and leaves the pod isolated where it hears nothing.
const LIMIT: Duration = Duration::from_millis(900);

/// What the task of policies does for others. It answers from memory and writes what differs.
pub(crate) trait PolicyHandle: Send + Sync + 'static {
    /// Puts the policies of a pod into force that is about to start; `netns` is its network namespace. What is there of another pod with one of its
    /// addresses is replaced first. An answer that says so is given only when the kernel has it. An error says why nothing is known yet.
    fn prepare(
        &self,
        request: PrepareRequest,
        netns: Option<Arc<OwnedFd>>,
    ) -> PolicyFuture<Result<PrepareAnswer, String>>;

    /// Takes away what there is of pods that are gone and of their addresses.
    fn release(&self, request: ReleaseRequest) -> PolicyFuture<Result<(), String>>;

    /// Another number after each change of what [`Self::snapshot`] gives.
    fn changes(&self) -> watch::Receiver<u64>;

    /// What is known, for people.
    fn state(&self) -> PolicyFuture<PolicyStateReport>;

    /// When what [`Self::snapshot`] gives was known, where that is not now.
    fn known_at(&self) -> Option<SystemTime>;

    /// What is known now; nothing before the lists are complete, and before what an earlier agent knew is read.
    fn snapshot(&self) -> PolicyFuture<Option<PolicySnapshot>>;
}

/// What the task of policies comes to later.
pub(crate) type PolicyFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Answers plugins, and whoever asks what was denied; nothing where policies are not enforced.
pub(crate) struct PolicySocket(pub(crate) Option<Arc<dyn PolicyHandle>>, pub(crate) Option<Arc<DenialBook>>);

impl PolicySocket {
    /// A pod is about to start. An agent that enforces no policies says that none isolates it.
    pub(crate) async fn prepare(&self, body: &[u8], netns: Option<Descriptor>) -> ServedAnswer {
        let request = match read(body) {
            Ok(request) => request,
            Err(why) => return text(StatusCode::BAD_REQUEST, why),
        };
        match &self.0 {
            None => answer(&PrepareAnswer { in_force: true, ..PrepareAnswer::default() }),
            Some(policies) => {
                let netns = netns.map(|Descriptor(descriptor)| descriptor);
                match in_time(policies.prepare(request, netns)).await {
                    Ok(prepared) => answer(&prepared),
                    Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
                }
            }
        }
    }

    /// What was denied: all that is kept, or what is newer than a number.
    pub(crate) fn denials(&self, query: &str) -> ServedAnswer {
        let Some(book) = &self.1 else {
            return text(
                StatusCode::NOT_FOUND,
                "network policies are not enforced here; see POLICY_ENFORCEMENT\n",
            );
        };
        let after = query.split('&').find_map(|pair| pair.strip_prefix("after=")?.parse().ok());
        answer(&book.report(after.unwrap_or_default()))
    }

    /// What is known, for people.
    pub(crate) async fn state(&self) -> ServedAnswer {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let state = match &self.0 {
            None => PolicyStateReport::default(),
            Some(policies) => policies.state().await,
        };
        answer(&PolicyStateReport { version, ..state })
    }

    /// Pods are gone.
    pub(crate) async fn release(&self, body: &[u8]) -> ServedAnswer {
        let request = match read(body) {
            Ok(request) => request,
            Err(why) => return text(StatusCode::BAD_REQUEST, why),
        };
        let Some(policies) = &self.0 else { return text(StatusCode::OK, "") };
        match in_time(policies.release(request)).await {
            Ok(()) => text(StatusCode::OK, ""),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        }
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("{error}\n"))
}

/// The work goes on where it takes too long or the plugin hangs up: half of it would be worse.
async fn in_time<T: Send + 'static>(work: PolicyFuture<Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(LIMIT, tokio::spawn(work)).await {
        Ok(Ok(Ok(done))) => Ok(done),
        Ok(Ok(Err(why))) => Err(format!("{why}\n")),
        Ok(Err(_)) => Err("the task of policies ended without an answer; see the agent's log\n".into()),
        Err(_) => Err("the policies of this node are not in force yet; it takes too long\n".into()),
    }
}
