//! Pods that show themselves that they started without capture: their validation container fails.

use crate::Object;
use crate::object::Terminated;

/// What makes a pod a broken one. Each part may be empty, and is not looked at then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenRules {
    /// Annotation that the pod has to have, whatever it says.
    pub annotation: String,
    /// Name of the init container.
    pub container: String,
    /// Its termination message, apart from blanks around it.
    pub message: String,
    /// Its exit code; 0: any.
    pub exit_code: i32,
}

impl BrokenRules {
    /// Whether a validation container has failed, and is tried again. As in the original only the end before the last start counts, so that
    /// the first failure is seen with the second try.
    pub fn is_broken(&self, pod: &Object) -> bool {
        self.failure(pod).is_some()
    }

    /// When the try that failed last was started, RFC 3339 and empty where kubelet does not say; absent for a pod that is not broken.
    pub fn failure<'a>(&self, pod: &'a Object) -> Option<&'a str> {
        let mut statuses = pod.init_statuses().filter(|status| self.is_its(status.name.as_deref()));
        let failed = statuses.find_map(|status| {
            let before = status.ended_before().filter(|end| self.is_failure(end))?;
            match status.ended() {
                Some(end) if end.is_success() => None,
                end => Some(end.unwrap_or(before)),
            }
        });
        let failed = failed.filter(|_| self.is_annotated(pod))?;
        Some(failed.started_at.as_deref().unwrap_or_default())
    }

    /// Whether a validation container has failed and does not run: kubelet starts it again when its back-off is over.
    pub fn waits_for_kubelet(&self, pod: &Object) -> bool {
        let mut statuses = pod.init_statuses().filter(|status| self.is_its(status.name.as_deref()));
        let waits = statuses.any(|status| {
            let last = status.ended().or_else(|| status.ended_before());
            !status.is_running() && last.is_some_and(|end| !end.is_success() && self.is_failure(end))
        });
        waits && !pod.never_restarts() && self.is_annotated(pod)
    }

    /// Whether it has failed for good: nothing starts any container of the pod again.
    pub fn is_lost(&self, pod: &Object) -> bool {
        let failed = |end: &Terminated| !end.is_success() && self.is_failure(end);
        let mut statuses = pod.init_statuses().filter(|status| self.is_its(status.name.as_deref()));
        let has_failed = statuses.any(|status| status.ended().is_some_and(failed));
        has_failed && pod.is_failed() && pod.never_restarts() && self.is_annotated(pod)
    }

    fn is_annotated(&self, pod: &Object) -> bool {
        self.annotation.is_empty() || pod.annotation(&self.annotation).is_some()
    }

    fn is_its(&self, name: Option<&str>) -> bool {
        self.container.is_empty() || name == Some(&self.container)
    }

    fn is_failure(&self, end: &Terminated) -> bool {
        let message = self.message.trim();
        let is_message = message.is_empty() || end.message.as_deref().unwrap_or_default().trim() == message;
        let is_code = self.exit_code == 0 || end.exit_code.unwrap_or_default() == self.exit_code;
        is_message && is_code
    }
}

#[cfg(test)]
mod tests;
