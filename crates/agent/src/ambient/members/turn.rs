//! Who works on a pod.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

/// Who is told that nobody works on a pod any more.
pub(super) type TurnEnded = Arc<dyn Fn(&str) + Send + Sync>;

/// The right to work on a pod: the plugin's event and the queue may want to at once.
pub(crate) struct Turn {
    guard: Option<OwnedMutexGuard<()>>,
    uid: String,
    ended: Option<TurnEnded>,
}

// === impl Turn ===

impl Turn {
    pub(super) fn new(guard: OwnedMutexGuard<()>, uid: &str, ended: Option<TurnEnded>) -> Self {
        Self { guard: Some(guard), uid: uid.to_owned(), ended }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.guard.take());
        if let Some(ended) = &self.ended {
            ended(&self.uid);
        }
    }
}
