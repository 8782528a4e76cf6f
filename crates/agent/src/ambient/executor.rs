//! Acts are carried out one by one, and each is written down once: [`intent::Have`] says what it does. There is no other way to work on a pod: one that
//! enters or leaves, one that has ended, is gone or is given up, one that an earlier agent had, and one whose rules differ.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use capture::ambient::{NodeOptions, PodOptions};
use intent::{Act, Birth, Look, Observation, Want, steps};

use super::failpoint;
use super::failure::AmbientFailure;
use super::members::{Member, MemberState, MeshMembers};
use super::ports::{AmbientPorts, Loaded, NetnsSource, Next};
use crate::drains::now;

/// Work on one pod. Whoever has it has the pod's turn.
pub(super) struct Executor<'a, P> {
    ports: &'a P,
    members: &'a MeshMembers,
    /// The pod as it was known after the last change.
    member: Member,
    /// Where its namespace comes from.
    place: NetnsSource,
    /// What is known of it is on disk.
    saved: bool,
    /// The last programming of its rules changed something.
    changed_rules: bool,
}

/// How far the acts came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ActProgress {
    /// All of them are done.
    Done,
    /// The rest comes when it is time.
    Waits,
}

/// An act that failed.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) at: Act,
    pub(super) failure: AmbientFailure,
}

/// What a pod's way in goes by.
pub(super) struct Entering {
    /// The pod's addresses; those that are known hold if there are none.
    pub(super) addresses: Vec<IpAddr>,
    /// What a new sandbox gets: what annotations and options say today.
    pub(super) options: PodOptions,
    pub(super) node: Arc<NodeOptions>,
    pub(super) birth: Birth,
    /// The namespace is opened or looked for, even if one is known.
    pub(super) is_lost: bool,
}

// === impl Stopped ===

impl From<Stopped> for AmbientFailure {
    fn from(stopped: Stopped) -> Self {
        stopped.failure
    }
}

// === impl Executor ===

impl<'a, P: AmbientPorts> Executor<'a, P> {
    pub(super) fn new(ports: &'a P, members: &'a MeshMembers, member: Member, place: NetnsSource) -> Self {
        Self { ports, members, member, place, saved: true, changed_rules: false }
    }

    /// The pod as it is known now.
    pub(super) fn member(&self) -> &Member {
        &self.member
    }

    /// Whether the last programming of its rules changed something.
    pub(super) fn has_changed_rules(&self) -> bool {
        self.changed_rules
    }

    /// Changes what is known of the pod. One that is not noted is changed here only.
    pub(super) fn change(&mut self, change: impl Fn(&mut Member)) {
        match self.members.change(&self.member.key.uid, &change) {
            Some(member) => self.member = member,
            None => change(&mut self.member),
        }
    }

    /// Notes what was seen of the pod.
    pub(super) fn see(&mut self, finding: Observation) {
        self.change(|member| member.have.see(finding));
    }

    /// Takes the pod in, up to its annotation, which the API server may keep waiting for.
    pub(super) async fn enter(&mut self, entering: &Entering) -> Result<(), Stopped> {
        let want = Want::In { addresses: entering.addresses.clone() };
        let mut have = self.member.have.clone();
        if entering.is_lost {
            have.see(Observation::Lost);
        }
        match steps(&want, &have, entering.birth).first() {
            Some(Act::Locate) => self.move_in(entering).await?,
            _ => self.change(|member| begin(member, entering, false)),
        }
        self.saved = false;
        for act in steps(&want, &self.member.have, entering.birth) {
            if matches!(act, Act::Annotate(_)) {
                break;
            }
            self.act(&act).await?;
        }
        Ok(())
    }

    /// [`Act::Locate`] of a pod that enters. It is not known before its namespace is.
    async fn move_in(&mut self, entering: &Entering) -> Result<(), Stopped> {
        let stopped = |failure| Stopped { at: Act::Locate, failure };
        let found = self.ports.locate(&self.member, &entering.addresses, &self.place).await;
        let Some(found) = found.map_err(stopped)? else { return Ok(()) };
        let before = self.member.netns.clone();
        let netns = std::cell::Cell::new(Some(found.netns));
        self.change(|member| {
            if let Some(netns) = netns.take() {
                member.move_to(netns);
            }
            member.given = found.given;
            member.call(found.called.clone());
            member.have.after(&Act::Locate, now());
            let moved = member.netns != before;
            begin(member, entering, moved);
        });
        if self.members.get(&self.member.key.uid).is_none() {
            self.members.insert(self.member.clone());
        }
        failpoint::reached(&Act::Locate);
        Ok(())
    }

    /// Begins a way out: what is known of the pod's namespace is looked at, and the next agent is to know that it leaves.
    pub(super) async fn begin_leaving(&mut self, is_gone: bool) {
        let namespace = match &self.member.netns {
            _ if is_gone => Observation::SandboxGone,
            Some(_) => Observation::Found,
            None => Observation::Lost,
        };
        self.change(|member| {
            member.have.see(namespace);
            member.state = MemberState::Leaving;
        });
        self.ports.keep(&self.member).await;
    }

    /// Carries out what leads to `want`. A pod whose annotation cannot be changed goes on (`unsaid_too`) and is forgotten when it could.
    pub(super) async fn carry_out(&mut self, want: &Want, unsaid_too: bool) -> Result<ActProgress, Stopped> {
        let mut unsaid = None;
        'plans: loop {
            for act in steps(want, &self.member.have, Birth::Running) {
                match (&act, &unsaid) {
                    (Act::Annotate(_), Some(_)) => continue,
                    (Act::Forget, Some(_)) => break,
                    _ => {}
                }
                match self.act(&act).await {
                    Ok(Next::Now) if act == Act::Locate => continue 'plans,
                    Ok(Next::Now) => {}
                    Ok(Next::Later) => return unsaid.map_or(Ok(ActProgress::Waits), Err),
                    Err(stopped) if unsaid_too && act == Act::Annotate(None) => unsaid = Some(stopped),
                    Err(stopped) => return Err(stopped),
                }
            }
            return unsaid.map_or(Ok(ActProgress::Done), Err);
        }
    }

    /// Gives the pod up. Nothing of it may stay for want of something else: gives what could not be done.
    pub(super) async fn give_up(mut self) -> Vec<AmbientFailure> {
        let mut failures = Vec::new();
        for act in steps(&Want::GivenUp, &self.member.have, Birth::New) {
            failures.extend(self.act(&act).await.err().map(|stopped| stopped.failure));
        }
        failures
    }

    /// Carries out an act and writes down what came of it.
    async fn act(&mut self, act: &Act) -> Result<Next, Stopped> {
        self.change(|member| member.have.begin(act));
        if !self.saved && !matches!(act, Act::TakeAddresses(_) | Act::Forget) {
            // Before anything of ours comes into the pod's namespace the next agent is to know of it.
            self.ports.keep(&self.member).await;
            self.saved = true;
        }
        match self.perform(act).await {
            Ok(Next::Later) => return Ok(Next::Later),
            Ok(Next::Now) => {}
            Err(failure) => {
                self.change(|member| member.have.failed(act, failure.is_overdue()));
                return Err(Stopped { at: act.clone(), failure });
            }
        }
        self.change(|member| {
            member.have.after(act, now());
            match act {
                Act::TakeAddresses(_) => member.note_addressed(),
                Act::Annotate(_) => member.annotated = Some(Instant::now()),
                _ => {}
            }
        });
        self.saved &= !matches!(act, Act::Drain | Act::TakeAddresses(_));
        failpoint::reached(act);
        Ok(Next::Now)
    }

    async fn perform(&mut self, act: &Act) -> Result<Next, AmbientFailure> {
        let (ports, member) = (self.ports, &self.member);
        let uid = &member.key.uid;
        match act {
            Act::Locate => self.find_again().await?,
            Act::TakeAddresses(_) => {}
            Act::RemoveStaleProbes => ports.remove_probes(&member.have.stale, uid)?,
            Act::LoadRules { spare } => {
                let loaded = ports.load(member, *spare).await;
                self.loaded(loaded)?;
            }
            Act::RepairRules => {
                if let Some(loaded) = ports.repair(member).await {
                    self.loaded(loaded)?;
                }
            }
            Act::TellZtunnel => ports.tell(member).await?,
            Act::AddProbes => ports.add_probes(&member.have.addresses, uid)?,
            Act::Annotate(mark) => ports.annotate(&member.key, *mark).await?,
            Act::Drain => {
                if !ports.drain(member).await? {
                    self.see(Observation::NoRules);
                }
            }
            Act::Wait => return Ok(ports.wait(member)),
            Act::RemoveProbes => {
                let ips = [&member.have.addresses[..], &member.have.stale[..]].concat();
                ports.remove_probes(&ips, uid)?;
            }
            Act::RemoveFromZtunnel => ports.release(uid).await?,
            Act::EndConnections => ports.end(member).await,
            Act::RemoveRules => ports.remove(member).await?,
            Act::RestoreTracking => ports.restore_tracking(member).await?,
            Act::ForgetEntries => ports.forget_entries(member).await,
            Act::Forget => {
                self.members.remove(uid);
                ports.forget(member).await;
            }
        }
        Ok(Next::Now)
    }

    /// Finds the namespace in which a pod that leaves has been all the time.
    async fn find_again(&mut self) -> Result<(), AmbientFailure> {
        let found =
            self.ports.locate(&self.member, &self.member.have.addresses, &NetnsSource::Leaving).await?;
        let found = std::cell::Cell::new(found);
        self.change(|member| match found.take() {
            Some(found) => member.move_to_keeping(found.netns),
            None => member.have.see(Observation::NeverHadRules),
        });
        Ok(())
    }

    fn loaded(&mut self, loaded: Loaded) -> Result<(), AmbientFailure> {
        if loaded.strict {
            self.see(Observation::Strict);
        }
        self.changed_rules = loaded.changed?;
        Ok(())
    }
}

/// A way in begins in a namespace that is known, in another one than before (`moved`) or in the same.
fn begin(member: &mut Member, entering: &Entering, moved: bool) {
    let new = entering.birth == Birth::New;
    member.announced = new && (member.announced || moved);
    if !member.have.is_captured() {
        (member.options, member.node) = (entering.options.clone(), Some(entering.node.clone()));
    }
    if matches!(member.state, MemberState::Leaving | MemberState::Draining) && member.have.is_captured() {
        // Some of what it had may be gone.
        member.have.see(Observation::Rules(Look::Unknown));
    }
    if member.state != MemberState::Unconfirmed {
        member.state = MemberState::Pending;
    }
}

#[cfg(test)]
mod tests;
