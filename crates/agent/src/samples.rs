//! How many pods were in which state, minute by minute.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ::verification::VerificationState;
use rundir::recent::{MAX_SAMPLES, PodsSample};

use crate::pods_report::seconds;
use crate::verification::PodVerifier;

/// Time between two samples.
const PAUSE: Duration = Duration::from_secs(60);

/// The last samples.
#[derive(Debug, Default)]
pub(crate) struct PodsSamples(Mutex<VecDeque<PodsSample>>);

// === impl PodsSamples ===

impl PodsSamples {
    /// Takes samples until the task is aborted.
    pub(crate) async fn live(self: Arc<Self>, verifier: Arc<PodVerifier>) {
        let mut tick = tokio::time::interval(PAUSE);
        loop {
            tick.tick().await;
            self.take(seconds(SystemTime::now()), verifier.pods().iter().map(|pod| pod.state));
        }
    }

    /// The samples, the oldest first.
    pub(crate) fn all(&self) -> Vec<PodsSample> {
        self.samples().iter().cloned().collect()
    }

    fn take(&self, at: f64, pods: impl Iterator<Item = VerificationState>) {
        let mut states: BTreeMap<String, usize> = BTreeMap::new();
        for state in pods {
            match states.get_mut(state.label()) {
                Some(count) => *count += 1,
                None => drop(states.insert(state.label().to_owned(), 1)),
            }
        }
        let mut samples = self.samples();
        if samples.len() == MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(PodsSample { at, states });
    }

    fn samples(&self) -> MutexGuard<'_, VecDeque<PodsSample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept() {
        let samples = PodsSamples::default();
        for minute in 0..MAX_SAMPLES + 3 {
            let pods = [VerificationState::Verified, VerificationState::Drifted, VerificationState::Verified];
            samples.take(minute as f64, pods.into_iter().take(minute));
        }
        let all = samples.all();
        assert_eq!((all.len(), all[0].at), (MAX_SAMPLES, 3.0));
        let states: Vec<_> = all[0].states.iter().map(|(state, count)| (state.as_str(), *count)).collect();
        assert_eq!(states, [("drifted", 1), ("verified", 2)]);
    }
}
