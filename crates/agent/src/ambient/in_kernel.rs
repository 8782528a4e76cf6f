//! What is done in network namespaces, on threads for it.

use facts::PodRef;

use super::Ambient;
use super::failure::AmbientFailure;
use super::host::HostSide;
use crate::slots::{Task, UnfinishedAct};

impl Ambient {
    /// The node's namespace, when it is ready.
    pub(super) fn host(&self) -> Result<&HostSide, AmbientFailure> {
        self.node.host.get().ok_or(AmbientFailure::NotReady)
    }

    /// Does an act in a pod's namespace.
    pub(super) async fn in_pod<T: Send + 'static>(
        &self,
        key: &PodRef,
        task: Task,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, UnfinishedAct> {
        self.pods.slots.run(key, task, work).await
    }

    /// Does work in the node's namespace on a thread for it.
    pub(super) async fn in_kernel<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        let under_way = self.node.under_way.clone().read_owned().await;
        let work = move || {
            let _under_way = under_way;
            work()
        };
        tokio::task::spawn_blocking(work).await
    }
}
