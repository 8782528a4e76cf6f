//! The way out of the mesh (AA-51).

use cluster::PodKey;
use facts::Facts;
use kernel::conntrack;
use netns::find::Missing;

use super::Ambient;
use super::desired::REDIRECTION;
use super::enrol::{LOCK_TIMEOUT, pod_text};
use super::failpoint;
use super::failure::Failure;
use super::members::{Member, State};

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

impl Ambient {
    /// Takes a pod out of the mesh, from wherever an earlier try ended. A pod that has nothing of ours is left alone. Whoever calls has
    /// the pod's turn.
    ///
    /// The rules go first: what they redirected still finds its ztunnel then, and what comes after needs none.
    pub(super) async fn leave(
        &self,
        key: &PodKey,
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
        member.state = State::Leaving;
        self.note(&member);
        self.keep(&member).await;
        if ending == Ending::Out {
            self.remove_rules(&mut member).await?;
        }
        failpoint::reached("left-rules");
        // Each of these is noted before it is attempted: a pod whose way out ends here and that is to be in again needs all of them anew.
        member.probed = false;
        self.note(&member);
        self.host()?.remove(&member.ips, &key.uid)?;
        failpoint::reached("left-probes");
        // A ztunnel that connects from here on does not hear of it, and stops what it still has of it.
        (member.listed, member.acked) = (false, false);
        self.note(&member);
        self.ztunnels.remove(&key.uid).await?;
        failpoint::reached("left-ztunnel");
        if ending != Ending::Gone {
            self.annotate(&mut member, None).await?;
        }
        failpoint::reached("left-annotation");
        self.forget(&member).await;
        self.log.info(
            "pod is out of the mesh",
            &[("pod", &pod_text(key)), ("uid", &key.uid), ("reason", &reason)],
        );
        Ok(())
    }

    /// A pod that this process did not enrol and that carries the mark of one that did.
    fn left_over(facts: Option<&Facts>) -> Option<Member> {
        let pod = &facts?.pod;
        pod.annotation(REDIRECTION)?;
        let (mut member, _) = Member::of(pod);
        member.set_ips(pod.ips());
        member.ruled = true;
        Some(member)
    }

    async fn remove_rules(&self, member: &mut Member) -> Result<(), Failure> {
        if member.netns.is_none() && member.ruled {
            match self.finder.find(self, member.wanted(&member.ips)).await {
                Ok(netns) => member.move_to_keeping(netns),
                // Such a pod has never had any.
                Err(Failure::NotFound(Missing::HostNetwork | Missing::Sandbox(_))) => member.ruled = false,
                // Its rules redirect to ztunnel still: without that it would have no network at all.
                Err(failure) => return Err(Failure::Cleanup(failure.to_string())),
            }
        }
        let Some(netns) = member.netns.clone().filter(|_| !Self::is_gone(member)) else { return Ok(()) };
        let (kernel, backend, strict) = (self.backends.clone(), self.host()?.backend(), member.strict);
        member.ruled = false;
        self.note(member);
        let evidence = self.evidence.clone();
        let removed = self.in_kernel(move || -> Result<(), Failure> {
            let _lock = netns.lock(LOCK_TIMEOUT).ok();
            // What cannot be forgotten now is when the namespace is no member's any more.
            let _ = evidence.forget(netns.id());
            let everything = capture::ambient::plan_of_everything(backend);
            let remove = |inside: &netns::Inside| kernel.kernel().cleanup(inside, &everything);
            netns.enter(remove)?.map_err(|error| Failure::Cleanup(kernel::chain_text(&error)))?;
            if strict && let Ok(Err(error)) = netns.enter(|inside| conntrack::set_strict(inside, false)) {
                return Err(Failure::Cleanup(error.to_string()));
            }
            Ok(())
        });
        removed.await??;
        self.backends.log_warnings(&self.log);
        member.strict = false;
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
        if value.is_some() {
            self.note(member);
        }
        Ok(())
    }
}
