//! A look at a pod that panicked: whether the pod's rules are as planned is not known, and it is looked at again at its next turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use ::verification::{Layer, UnverifiableReason};

use super::verifier::PodVerifier;

impl PodVerifier {
    /// Does a part of a look that waits for nothing. Nothing where it panicked.
    pub(super) fn guarded<T>(&self, number: u64, layer: Layer, part: impl FnOnce() -> T) -> Option<T> {
        // What is half changed then is what is known of this pod, which begins anew.
        let done = catch_unwind(AssertUnwindSafe(part));
        done.inspect_err(|_| self.panicked(number, layer)).ok()
    }

    /// Takes up what is expected. Where that panics the pods that are known are verified as before, and the next change or round tries again.
    pub(super) fn synchronize_guarded(&self) {
        if catch_unwind(AssertUnwindSafe(|| self.synchronize())).is_err() {
            self.parts.metrics.verified(Layer::Full, "error", Duration::ZERO);
            let text = "it was looked which pods are expected, and that has panicked; those that are known are verified; this is a defect, please report it";
            self.parts.log.error(text, &[]);
        }
    }

    /// A look at a pod panicked, and so did not end as others do.
    pub(super) fn panicked(&self, number: u64, layer: Layer) {
        let reason = UnverifiableReason::Kernel;
        let text = "the verification of its rules has panicked; this is a defect, please report it";
        self.parts.metrics.verified(layer, "error", Duration::ZERO);
        let pod = self.sandboxes().change(number, |entry| {
            entry.busy = false;
            entry.is_failed(reason, text.to_owned()).then(|| entry.pod.clone())
        });
        if let Some(Some(pod)) = pod {
            self.tell_unverifiable(&pod, reason, text);
        }
        self.looked.notify_waiters();
        self.hurried.notify_one();
    }
}
