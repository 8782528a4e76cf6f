//! How many pods are expected, verified and not: counted from one snapshot, so that the sums are equal by construction.

use std::collections::BTreeMap;

use crate::{DataPlaneMode, VerificationState};

/// The pods of a snapshot by mode and state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger(BTreeMap<(DataPlaneMode, VerificationState), usize>);

impl Ledger {
    /// How many should be captured.
    #[must_use]
    pub fn expected(&self, mode: DataPlaneMode) -> usize {
        let of_mode = self.0.iter().filter(|((of, _), _)| *of == mode);
        of_mode.map(|(_, pods)| pods).sum()
    }

    /// How many are in a state.
    #[must_use]
    pub fn count(&self, mode: DataPlaneMode, state: VerificationState) -> usize {
        self.0.get(&(mode, state)).copied().unwrap_or_default()
    }

    /// How many are verified.
    #[must_use]
    pub fn verified(&self, mode: DataPlaneMode) -> usize {
        self.count(mode, VerificationState::Verified)
    }

    /// How many are not, by state: every state there is, those without a pod among them.
    pub fn unverified(&self, mode: DataPlaneMode) -> impl Iterator<Item = (VerificationState, usize)> + '_ {
        VerificationState::unverified().map(move |state| (state, self.count(mode, state)))
    }
}

impl FromIterator<(DataPlaneMode, VerificationState)> for Ledger {
    fn from_iter<I: IntoIterator<Item = (DataPlaneMode, VerificationState)>>(pods: I) -> Self {
        let mut ledger = Self::default();
        for pod in pods {
            *ledger.0.entry(pod).or_default() += 1;
        }
        ledger
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    proptest! {
        #[test]
        fn the_expected_are_the_verified_and_all_others(
            pods in prop::collection::vec((select(DataPlaneMode::ALL.to_vec()), select(states())), 0..300),
        ) {
            let ledger: Ledger = pods.iter().copied().collect();
            for mode in DataPlaneMode::ALL {
                let others: usize = ledger.unverified(mode).map(|(_, pods)| pods).sum();
                prop_assert_eq!(ledger.expected(mode), ledger.verified(mode) + others);
                prop_assert_eq!(ledger.expected(mode), pods.iter().filter(|(of, _)| *of == mode).count());
            }
        }
    }

    fn states() -> Vec<VerificationState> {
        VerificationState::unverified().chain([VerificationState::Verified]).collect()
    }

    #[test]
    fn no_two_states_have_the_same_labels() {
        let labels: std::collections::BTreeSet<String> =
            states().iter().map(VerificationState::to_string).collect();
        assert_eq!(labels.len(), states().len());
    }
}
