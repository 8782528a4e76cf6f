//! How far a call has come: seconds of each phase, and what is being waited for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rundir::Phases;
use rundir::policy::PolicyOutcome;

/// Shared by the thread that works and the one that watches the time.
#[derive(Debug)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Debug)]
struct State {
    started: Instant,
    /// When the last phase ended.
    last: Instant,
    phases: Phases,
    waiting_for: &'static str,
    facts_source: &'static str,
    remark: String,
    gaps: String,
    assumed: &'static str,
    backend_missing: bool,
    policy: PolicyOutcome,
}

/// A phase that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum EndedPhase {
    Parse,
    Facts,
    Decide,
    Apply,
}

impl Progress {
    /// `started` is when the process began.
    pub(crate) fn new(started: Instant) -> Self {
        Self(Mutex::new(State {
            started,
            last: started,
            phases: Phases::default(),
            waiting_for: "its configuration",
            facts_source: "",
            remark: String::new(),
            gaps: String::new(),
            assumed: "",
            backend_missing: false,
            policy: PolicyOutcome::Off,
        }))
    }

    /// Notes what comes next, for the message of a call that takes too long.
    pub(crate) fn wait_for(&self, what: &'static str) {
        self.state().waiting_for = what;
    }

    pub(crate) fn waiting_for(&self) -> &'static str {
        self.state().waiting_for
    }

    pub(crate) fn set_facts_source(&self, source: &'static str) {
        self.state().facts_source = source;
    }

    pub(crate) fn facts_source(&self) -> &'static str {
        self.state().facts_source
    }

    /// Notes what is wrong although the call succeeds.
    pub(crate) fn set_remark(&self, remark: String) {
        self.state().remark = remark;
    }

    /// Takes that note.
    pub(crate) fn take_remark(&self) -> String {
        std::mem::take(&mut self.state().remark)
    }

    /// Notes that this node lacks what rules are loaded with.
    pub(crate) fn set_backend_missing(&self) {
        self.state().backend_missing = true;
    }

    pub(crate) fn is_backend_missing(&self) -> bool {
        self.state().backend_missing
    }

    /// Notes what was done about policies.
    pub(crate) fn set_policy(&self, policy: PolicyOutcome) {
        self.state().policy = policy;
    }

    pub(crate) fn policy(&self) -> PolicyOutcome {
        self.state().policy
    }

    /// Notes why not all traffic of the pod is captured although its rules are there.
    pub(crate) fn set_gaps(&self, gaps: &[String]) {
        self.state().gaps = gaps.join("; ");
    }

    /// As noted; empty where the rules miss nothing.
    pub(crate) fn gaps(&self) -> String {
        self.state().gaps.clone()
    }

    /// Notes which facts of the pod are assumed.
    pub(crate) fn set_assumed(&self, assumed: &'static str) {
        self.state().assumed = assumed;
    }

    /// Why the pod may not be captured as its owner expects; empty if nothing speaks against it.
    pub(crate) fn doubts(&self) -> String {
        let state = self.state();
        let parts = [&*state.gaps, state.assumed];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
    }

    /// When a wait has to end in a call that may take this long, so that there is time left to say what was waited for.
    pub(crate) fn end_of(&self, limit: Duration) -> Instant {
        self.state().started + limit.mul_f32(0.95)
    }

    /// Ends a phase; gives its milliseconds.
    pub(crate) fn ended(&self, phase: EndedPhase) -> f64 {
        let mut state = self.state();
        let now = Instant::now();
        let seconds = (now - state.last).as_secs_f64();
        state.last = now;
        *match phase {
            EndedPhase::Parse => &mut state.phases.parse,
            EndedPhase::Facts => &mut state.phases.facts,
            EndedPhase::Decide => &mut state.phases.decide,
            EndedPhase::Apply => &mut state.phases.apply,
        } = Some(seconds);
        seconds * 1000.0
    }

    pub(crate) fn phases(&self) -> Phases {
        self.state().phases
    }

    /// Seconds since the process began.
    pub(crate) fn seconds(&self) -> f64 {
        self.state().started.elapsed().as_secs_f64()
    }

    /// The state is whole between any two statements, so a panic elsewhere does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
