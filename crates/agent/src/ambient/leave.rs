//! The way out of the mesh, step by step.
//!
//! The kernel translates packets of a redirected connection only while rules of a certain kind are there
//! ([`capture::ambient::plan_drain`]): without them neither side hears of the other any more, nor of an end. So a pod that runs on loses
//! the redirects first. Everything else goes when no connection through ztunnel is left, or when the time for that is over.

use capture::ambient::{CAPTURE_PORTS, plan_drain, plan_of_everything};
use facts::{Facts, PodRef};
use kernel::{Choice, conntrack};
use netns::Inside;
use netns::find::Missing;

use super::Ambient;
use super::desired::{self, REDIRECTION};
use super::drain::{self, Wait};
use super::failpoint;
use super::failure::Failure;
use super::members::{Member, State};
use super::slots::{Act, Unfinished};

/// Why a pod leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It runs on outside of the mesh: its rules have to go.
    Out,
    /// Its containers have ended: its namespace goes with them.
    Ended,
    /// The API server does not know it any more.
    Gone,
}

/// A step of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The pod says to others that it is not in the mesh.
    Annotation,
    /// It is known where its rules are.
    Namespace,
    /// Nothing new is redirected; what was redirected goes on.
    Drain,
    /// Its addresses are not in the host's sets.
    Probes,
    /// Nothing goes through ztunnel any more, or the time for that is over.
    Wait,
    /// ztunnel has let go of the pod.
    Ztunnel,
    /// What still went through ztunnel has ended, for both sides.
    Connections,
    /// No rule, no route and no setting of ours is in its namespace.
    Rules,
    /// Connection tracking remembers nothing that was redirected.
    Entries,
}

const OF_A_RUNNING_POD: &[Step] = &[
    Step::Annotation,
    Step::Namespace,
    Step::Drain,
    Step::Probes,
    Step::Wait,
    Step::Ztunnel,
    Step::Connections,
    Step::Rules,
    Step::Entries,
];
const OF_AN_ENDED_POD: &[Step] = &[Step::Probes, Step::Ztunnel, Step::Annotation];
const OF_A_POD_THAT_IS_GONE: &[Step] = &[Step::Probes, Step::Ztunnel];

/// Whether the next step comes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Now,
    /// The pod is worked on again when it is time.
    Later,
}

// === impl Ending ===

impl Ending {
    fn steps(self) -> &'static [Step] {
        match self {
            Self::Out => OF_A_RUNNING_POD,
            Self::Ended => OF_AN_ENDED_POD,
            Self::Gone => OF_A_POD_THAT_IS_GONE,
        }
    }
}

// === impl Step ===

impl Step {
    /// For tests that kill the agent after it.
    fn failpoint(self) -> &'static str {
        match self {
            Self::Namespace => "left-namespace",
            Self::Annotation => "left-annotation",
            Self::Drain => "left-drain",
            Self::Probes => "left-probes",
            Self::Wait => "left-wait",
            Self::Ztunnel => "left-ztunnel",
            Self::Connections => "left-connections",
            Self::Rules => "left-rules",
            Self::Entries => "left-entries",
        }
    }
}

impl Ambient {
    /// Takes a pod out of the mesh, from wherever an earlier try ended; each step that is done already does nothing. A pod that has nothing
    /// of ours is left alone, and one that drains is left to that. Whoever calls has the pod's turn.
    pub(super) async fn leave(
        &self,
        key: &PodRef,
        facts: Option<&Facts>,
        ending: Ending,
        reason: &str,
    ) -> Result<(), Failure> {
        let Some(mut member) = self.members.get(&key.uid).or_else(|| Self::left_over(facts)) else {
            return Ok(());
        };
        if let Some(facts) = facts.filter(|_| member.ips.is_empty()) {
            // Nothing but an address shows which namespace is the pod's.
            member.set_ips(facts.pod.ips());
        }
        Self::see_annotation(&mut member, facts);
        if member.state != State::Draining || ending != Ending::Out {
            member.state = State::Leaving;
        }
        self.note(&member);
        self.keep(&member).await;
        let mut unsaid = None;
        for &step in ending.steps() {
            match self.step_out(step, &mut member).await {
                Ok(Next::Now) => {}
                Ok(Next::Later) => return unsaid.map_or(Ok(()), Err),
                // Rules do not stay in a pod because the API server is away. It is asked again until it answers.
                Err(failure) if step == Step::Annotation && !self.is_patient() => unsaid = Some(failure),
                Err(failure) => return Err(failure),
            }
            failpoint::reached(step.failpoint());
        }
        if let Some(failure) = unsaid {
            return Err(failure);
        }
        self.forget(&member).await;
        self.log.info("pod is out of the mesh", &[("pod", key), ("uid", &key.uid), ("reason", &reason)]);
        Ok(())
    }

    /// Somebody may have put the annotation back.
    pub(super) fn see_annotation(member: &mut Member, facts: Option<&Facts>) {
        if let Some(facts) = facts.filter(|_| member.is_settled()) {
            let shown = facts.pod.annotation(REDIRECTION).filter(|shown| desired::claims(shown));
            member.annotation = shown.map(str::to_owned);
        }
    }

    /// Whether a pod may keep its rules for as long as its annotation cannot be changed: where ambient mode is off nobody waits for its end.
    fn is_patient(&self) -> bool {
        self.config.is_off && self.ending.get().is_none()
    }

    async fn step_out(&self, step: Step, member: &mut Member) -> Result<Next, Failure> {
        match step {
            // Only the annotation is missing still.
            Step::Namespace | Step::Drain | Step::Connections | Step::Rules | Step::Entries
                if member.cleared => {}
            Step::Namespace => self.find_rules(member).await?,
            Step::Annotation => self.annotate(member, None).await?,
            Step::Drain => self.drain(member).await?,
            // These two are noted before they are attempted: a pod whose way out ends here and that is to be in again needs them anew.
            Step::Probes => {
                member.probed = false;
                self.note(member);
                self.host()?.remove(&member.ips, &member.key.uid)?;
            }
            Step::Wait => return Ok(self.wait(member)),
            Step::Ztunnel => {
                // A ztunnel that connects from here on does not hear of it, and stops what it still has of it.
                member.listed = false;
                member.acked.set(false);
                self.note(member);
                self.ztunnels.remove(&member.key.uid).await?;
            }
            Step::Connections => self.end_connections(member).await,
            Step::Rules => self.remove_rules(member).await?,
            Step::Entries => {
                self.forget_entries(member).await;
                member.cleared = true;
                self.note(member);
            }
        }
        Ok(Next::Now)
    }

    /// Leaves only those rules in the pod's namespace that let open connections go on.
    async fn drain(&self, member: &mut Member) -> Result<(), Failure> {
        if self.drains.of(&member.key.uid) != Wait::None {
            return Ok(());
        }
        let Some(netns) = member.netns.clone().filter(|_| !Self::is_gone(member)) else {
            (member.ruled, member.draining) = (false, None);
            return Ok(());
        };
        let (kernel, backend) = (self.backends.clone(), self.host()?.backend());
        let plan = plan_drain(&self.node_options(member), &member.options, backend);
        let known = member.ruled || member.draining.is_some();
        let evidence = self.evidence.clone();
        let drained = self.in_pod(&member.key, Act::Clear, move || -> Result<bool, Failure> {
            // A CHECK of a pod that is out compares with nothing. What cannot be forgotten now is with the rest of the rules.
            let _ = evidence.forget(netns.id());
            let drain = |inside: &Inside| -> Result<bool, kernel::Error> {
                let kernel = kernel.kernel();
                if !known && !kernel.exists(inside, &plan)? {
                    return Ok(false);
                }
                kernel.apply(inside, Choice::Only(backend), |_| plan.clone())?;
                Ok(true)
            };
            netns.enter(drain)?.map_err(|error| Failure::Cleanup(kernel::chain_text(&error)))
        });
        let drained = drained.await.map_err(|error| not_cleared(&error))??;
        self.backends.log_warnings(&self.log);
        member.ruled = false;
        if drained {
            member.draining.get_or_insert_with(drain::now);
            member.state = State::Draining;
        }
        self.note(member);
        self.keep(member).await;
        Ok(())
    }

    /// Whether the rest may go.
    fn wait(&self, member: &Member) -> Next {
        if member.draining.is_none() || self.drain_left(member).is_zero() {
            return Next::Now;
        }
        match self.drains.of(&member.key.uid) {
            Wait::Over => return Next::Now,
            Wait::Open => {}
            Wait::None => self.start_drain(member),
        }
        Next::Later
    }

    /// Ends what is still open through ztunnel.
    async fn end_connections(&self, member: &Member) {
        let netns = member.netns.clone().filter(|_| member.draining.is_some() && !Self::is_gone(member));
        let Some(netns) = netns else { return };
        let end = move || netns.enter(drain::end_connections);
        let error: String = match self.in_pod(&member.key, Act::Connections, end).await {
            Ok(Ok(Ok(0))) => return,
            Ok(Ok(Ok(ended))) => {
                self.metrics.connections_ended(ended);
                let text = "connections through ztunnel were ended: the pod's time to drain is over";
                let labels: [telemetry::Label<'_>; 2] = [("pod", &member.key), ("connections", &ended)];
                return self.log.warn(text, &labels);
            }
            Ok(Ok(Err(error))) => kernel::chain_text(&error),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.log.warn(
            "connections through ztunnel could not be ended; those that ztunnel leaves open hang",
            &[("pod", &member.key), ("error", &error)],
        );
    }

    async fn forget_entries(&self, member: &Member) {
        let Some(netns) = member.netns.clone().filter(|_| !Self::is_gone(member)) else { return };
        let forget = |inside: &Inside| conntrack::forget(inside, &CAPTURE_PORTS, |_| false);
        let forget = move || netns.enter(forget);
        let error: String = match self.in_pod(&member.key, Act::Connections, forget).await {
            Ok(Ok(Ok(_))) => return,
            Ok(Ok(Err(error))) => kernel::chain_text(&error),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        // The way back in looks for them, too.
        self.log.warn(&error, &[("pod", &member.key)]);
    }

    /// A pod that this process did not enrol and that carries the mark of one that did.
    fn left_over(facts: Option<&Facts>) -> Option<Member> {
        let pod = &facts?.pod;
        pod.annotation(REDIRECTION).filter(|value| desired::claims(value))?;
        let (mut member, _) = Member::of(pod);
        member.set_ips(pod.ips());
        member.ruled = true;
        Some(member)
    }

    /// The namespace of a pod that has rules of ours.
    async fn find_rules(&self, member: &mut Member) -> Result<(), Failure> {
        if member.netns.is_some() || (!member.ruled && member.draining.is_none()) {
            return Ok(());
        }
        match self.finder.find(self, member.wanted(&member.ips, &self.config)).await {
            Ok(netns) => member.move_to_keeping(netns),
            // Such a pod has never had any.
            Err(Failure::NotFound(Missing::HostNetwork | Missing::Sandbox(_))) => member.ruled = false,
            // Its rules redirect to ztunnel still: without that it would have no network at all.
            Err(failure) => return Err(Failure::Cleanup(failure.to_string())),
        }
        Ok(())
    }

    pub(super) async fn remove_rules(&self, member: &mut Member) -> Result<(), Failure> {
        let Some(netns) = member.netns.clone().filter(|_| !Self::is_gone(member)) else { return Ok(()) };
        let (kernel, backend) = (self.backends.clone(), self.host()?.backend());
        let evidence = self.evidence.clone();
        let removed = self.in_pod(&member.key, Act::Clear, move || -> Result<(), Failure> {
            // What cannot be forgotten now is when the namespace is no member's any more.
            let _ = evidence.forget(netns.id());
            let everything = plan_of_everything(backend);
            let remove = |inside: &Inside| kernel.kernel().cleanup(inside, &everything);
            netns.enter(remove)?.map_err(|error| Failure::Cleanup(kernel::chain_text(&error)))?;
            Ok(())
        });
        removed.await.map_err(|error| not_cleared(&error))??;
        self.backends.log_warnings(&self.log);
        self.pick_up_again(member).await?;
        (member.ruled, member.draining, member.state) = (false, None, State::Leaving);
        self.note(member);
        Ok(())
    }

    /// Lets the API server have this annotation, if it has another by what we know. A pod that is gone has none.
    pub(super) async fn annotate(
        &self,
        member: &mut Member,
        value: Option<&'static str>,
    ) -> Result<(), Failure> {
        if member.annotation.as_deref() == value {
            return Ok(());
        }
        if let Some(writer) = &self.writer {
            match writer.annotate_pod(&member.key, REDIRECTION, value).await {
                Err(error) if matches!(error.status(), Some(404 | 409)) => {}
                result => result?,
            }
        }
        member.annotation = value.map(str::to_owned);
        member.annotated = Some(std::time::Instant::now());
        if self.members.state(&member.key.uid).is_some() {
            self.note(member);
        }
        Ok(())
    }
}

fn not_cleared(unfinished: &Unfinished) -> Failure {
    Failure::Cleanup(unfinished.to_string())
}
