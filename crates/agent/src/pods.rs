//! Work on pods, the same for all modes: each pod is in the mode's queue once and is worked on by one at a time, from what is known of it then; what
//! failed comes again when its class says so.

use std::sync::Arc;

use cluster::Queue;
use facts::PodRef;
use fault::{Fault, Retry};
use tokio::task::{JoinError, JoinSet};

/// What a mode wants of its pods, and how it gets there.
pub(crate) trait Reconcile: Send + Sync + 'static {
    /// Why a pod is not where it belongs.
    type Failure: Fault + Send + Sync;

    /// Pods that wait for work.
    fn queue(&self) -> &Queue<PodRef>;

    /// On how many pods work may go on at once, now.
    fn places(&self) -> usize;

    /// Ends when there are more or fewer places than there were at this call.
    fn resized(&self) -> impl Future<Output = ()> + Send;

    /// Carries out what leads from what the pod has to what is wanted of it; `attempt` is from 1.
    fn reconcile(&self, pod: &PodRef, attempt: u32)
    -> impl Future<Output = Result<(), Self::Failure>> + Send;

    /// That was done.
    fn succeeded(&self, pod: &PodRef);

    /// That was not. The pod keeps its turn until this ends.
    fn failed(&self, pod: &PodRef, failure: &Self::Failure, attempt: u32) -> impl Future<Output = ()> + Send;

    /// It ended in a panic. The pod comes again after a pause.
    fn panicked(&self, error: JoinError);
}

/// Works until the task is aborted.
pub(crate) async fn work<M: Reconcile>(mode: Arc<M>) {
    let mut workers = JoinSet::new();
    let working = Arc::new(());
    loop {
        let resized = mode.resized();
        while workers.len() < mode.places() {
            workers.spawn(worker(mode.clone(), working.clone()));
        }
        tokio::select! {
            // After a panic the others must not be left with nobody.
            ended = workers.join_next() => {
                if let Some(Err(error)) = ended {
                    mode.panicked(error);
                }
            }
            () = resized => {}
        }
    }
}

/// Works until there are too many that do. `working` counts them.
async fn worker<M: Reconcile>(mode: Arc<M>, working: Arc<()>) {
    while Arc::strong_count(&working) <= 1 + mode.places() {
        let running = mode.queue().pop().await;
        match mode.reconcile(running.key(), running.attempt()).await {
            Ok(()) => {
                mode.succeeded(running.key());
                running.done();
            }
            Err(failure) => {
                mode.failed(running.key(), &failure, running.attempt()).await;
                match failure.retry() {
                    Retry::Backoff => running.retry(),
                    Retry::OnChange => running.done(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
