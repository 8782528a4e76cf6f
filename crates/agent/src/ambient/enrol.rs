//! The way into the mesh, step by step (AA-50).
//!
//! A new pod, which the plugin announces, has no process yet: its rules come first, so that whatever fails later, nothing of it gets past
//! them. A pod that runs already has connections and probes, so its rules come last: from the first packet that they redirect on, there is
//! somebody to take it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use capture::ambient::{NodeOptions, plan_pod};
use facts::{Facts, PodRef};
use kernel::{Applied, Change};
use netns::Netns;
use rustix::io::Errno;

use applied::sandbox::Sandbox;

use super::Ambient;
use super::evidence::{Seen, Subject};
use super::failpoint;
use super::failure::{Failure, Unopened};
use super::holder;
use super::members::{Look, Member, State};
use super::slots::Act;
use super::spare::{Spared, Sparing};
use crate::serve::Descriptor;

/// A step of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Rules in the pod's namespace.
    Rules,
    /// ztunnel has taken the pod.
    Ztunnel,
    /// The addresses in the host's sets.
    Probes,
}

const OF_A_NEW_POD: [Step; 3] = [Step::Rules, Step::Ztunnel, Step::Probes];
const OF_A_RUNNING_POD: [Step; 3] = [Step::Probes, Step::Ztunnel, Step::Rules];

/// Where the pod's namespace comes from.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// The runtime has just made it; the plugin says its path on the node, and hands it over open if it is one of ours.
    Given {
        path: String,
        descriptor: Option<Descriptor>,
        /// What the runtime calls the pod, if the plugin said it.
        called: Option<String>,
    },
    /// The plugin noted it when the pod started.
    Noted(Sandbox),
    /// It is looked for.
    Running,
}

impl Ambient {
    /// Takes a pod into the mesh, from wherever an earlier try ended. Whoever calls has the pod's turn.
    pub(super) async fn enrol(
        &self,
        key: &PodRef,
        facts: &Facts,
        ips: &[IpAddr],
        place: Place,
    ) -> Result<Member, Failure> {
        let began = Instant::now();
        if key.uid.is_empty() {
            return Err(Failure::NoUid);
        }
        let new = matches!(place, Place::Given { .. });
        let mut member = self.member(key, facts);
        self.refuse(facts, ips)?;
        let before = member.netns.clone();
        self.locate(&mut member, ips, place).await?;
        member.announced = new && (member.announced || member.netns != before);
        if member.announced && self.ztunnels.connected() == 0 {
            // There is nothing to take back then, and the plugin asks again.
            return Err(Failure::Ztunnel(zds::AddError::NoZtunnel));
        }
        if !member.ruled {
            // A new sandbox gets what annotations and options say today.
            (member.options, member.node) = (Member::of(&facts.pod).0.options, None);
        }
        if ips != member.ips && !ips.is_empty() {
            // What is no longer the pod's must not stay in the sets when the pod leaves.
            let old: Vec<IpAddr> = member.ips.iter().copied().filter(|ip| !ips.contains(ip)).collect();
            self.host()?.remove(&old, &key.uid)?;
            member.set_ips(ips.to_vec());
            member.probed = false;
        }
        if matches!(member.state, State::Leaving | State::Draining) {
            // Some of what it had may be gone.
            member.look = Look::Unknown;
        }
        if member.state != State::Unconfirmed {
            member.state = State::Pending;
        }
        self.drains.stop(&key.uid);
        member.cleared = false;
        self.note(&member);
        self.keep(&member).await;
        failpoint::reached("located");
        let steps = if new || member.ruled { OF_A_NEW_POD } else { OF_A_RUNNING_POD };
        for step in steps {
            if let Err(failure) = self.step(step, &mut member, new).await {
                // A thread that nobody waits for any more may load them still.
                member.ruled |= step == Step::Rules && failure.is_overdue();
                match step {
                    // Whoever announced it takes everything back.
                    _ if member.announced => self.note(&member),
                    // What is there of them still redirects to ztunnel, or lets connections through it go on.
                    Step::Rules if member.ruled || member.draining.is_some() => {
                        member.look = Look::Unknown;
                        self.note(&member);
                    }
                    Step::Rules => self.take_back(&mut member).await,
                    Step::Ztunnel | Step::Probes => {}
                }
                return Err(failure);
            }
        }
        (member.state, member.announced) = (State::Enrolled, false);
        self.note(&member);
        if self.members.state(&key.uid) != Some(State::Enrolled) {
            let text = "it refused the pod when it connected meanwhile".to_owned();
            return Err(Failure::Ztunnel(zds::AddError::Refused(text)));
        }
        if !new {
            // Of an announced pod the queue does that, which nobody waits for: that something of it is here is on disk already.
            self.keep(&member).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        self.metrics.enrolled(if new { "plugin" } else { "running" }, seconds);
        self.log.info(
            "pod is in the mesh",
            &[
                ("pod", key),
                ("uid", &key.uid),
                ("way", &if new { "plugin" } else { "running" }),
                ("ms", &format!("{:.3}", seconds * 1000.0)),
            ],
        );
        Ok(member)
    }

    /// What is known of a pod, or its beginning.
    pub(super) fn member(&self, key: &PodRef, facts: &Facts) -> Member {
        let (new, warnings) = Member::of(&facts.pod);
        let Some(mut member) = self.members.get(&key.uid) else {
            for warning in &warnings {
                self.log.warn(warning, &[("pod", key)]);
            }
            return new;
        };
        if !member.ruled {
            // What is in force was programmed by the annotations of then (AA-26).
            member.options = new.options;
        }
        member
    }

    /// The namespace, never another pod's and never the node's.
    async fn locate(&self, member: &mut Member, ips: &[IpAddr], place: Place) -> Result<(), Failure> {
        match place {
            Place::Given { path, descriptor, called } => {
                let (netns, given) = self.open_given(&member.key, path, descriptor, ips.to_vec()).await?;
                member.move_to(netns);
                (member.given, member.held) = (given, !given);
                member.call(called);
            }
            Place::Noted(sandbox) => self.locate_noted(member, sandbox).await?,
            // One that nobody sees go with its sandbox has to have a process of the pod still: the runtime may have given the sandbox up.
            Place::Running if !member.held && member.netns.is_some() && !Self::is_gone(member) => {}
            Place::Running => {
                let ips = if ips.is_empty() { member.ips.clone() } else { ips.to_vec() };
                self.look_for(member, &ips).await?;
            }
        }
        Ok(())
    }

    /// The namespace that has a process of the pod. Of another one that was the pod's nothing counts any more.
    pub(super) async fn look_for(&self, member: &mut Member, ips: &[IpAddr]) -> Result<(), Failure> {
        let found = self.finder.find(self, member.wanted(ips, &self.config)).await;
        if found.is_err() {
            (member.netns, member.ruled, member.look) = (None, false, Look::Unknown);
        }
        (member.given, member.held) = (false, false);
        member.move_to(found?);
        Ok(())
    }

    /// The namespace, and whether this agent sees it at its path too, so that it sees the path go with the sandbox.
    async fn open_given(
        &self,
        key: &PodRef,
        path: String,
        descriptor: Option<Descriptor>,
        ips: Vec<IpAddr>,
    ) -> Result<(Netns, bool), Failure> {
        let host = self.host()?.id();
        let on_node = self.config.on_node(&path);
        let opened = self.in_pod(key, Act::Identify, move || -> Result<_, Unopened> {
            let seen = Netns::open(&on_node);
            let (netns, given) = match descriptor {
                Some(Descriptor(descriptor)) => {
                    let descriptor = descriptor.try_clone().map_err(Unopened::Descriptor)?;
                    let netns = Netns::from_descriptor(descriptor, on_node)?;
                    let given = seen.is_ok_and(|seen| seen == netns);
                    (netns, given)
                }
                None => (seen.map_err(Unopened::Unseen)?, true),
            };
            netns::find::belongs_to(&netns, host, &ips, &super::finder::addresses)?;
            Ok((netns, given))
        });
        opened.await?.map_err(|cause| Failure::Given { path: path.into(), cause })
    }

    async fn step(&self, step: Step, member: &mut Member, new: bool) -> Result<(), Failure> {
        match step {
            Step::Rules if member.look != Look::AsPlanned => {
                if !member.ruled {
                    member.node = Some(self.config.node.now());
                }
                // Capture that was lost is added again, and spares what was opened meanwhile.
                match member.ruled {
                    true => self.repair(member).await?,
                    // A new pod has nothing open.
                    false => self.program(member, !new).await?,
                };
                (member.ruled, member.draining, member.look) = (true, None, Look::AsPlanned);
                self.note(member);
                failpoint::reached("rules");
            }
            Step::Ztunnel if !member.acked.get() => {
                let Some(netns) = member.netns.clone() else { return Ok(()) };
                // From here on a ztunnel that connects has to hear of it.
                member.listed = true;
                self.note(member);
                self.ztunnels.add(member.workload(), netns).await?;
                member.acked.set(true);
                self.note(member);
                failpoint::reached("ztunnel");
            }
            Step::Probes if !member.probed => {
                self.host()?.add(&member.ips, &member.key.uid)?;
                member.probed = true;
                self.note(member);
                failpoint::reached("probes");
            }
            _ => {}
        }
        Ok(())
    }

    /// The rules of a pod whose namespace is known; `spares` what it has open.
    pub(super) async fn program(
        &self,
        member: &mut Member,
        spares: bool,
    ) -> Result<Option<Applied>, Failure> {
        let Some(netns) = member.netns.clone() else { return Ok(None) };
        let sparing = spares.then(|| Sparing::of(self, member));
        let (kernel, node) = (self.backends.clone(), self.node_options(member));
        let (options, backend) = (member.options.clone(), self.host()?.backend());
        let (evidence, subject) = (self.evidence.clone(), Subject::of(member));
        let proc_root = self.config.proc_root();
        let applied = self.in_pod(&member.key, Act::Program, move || -> Result<_, Failure> {
            let apply = |inside: &netns::Inside| {
                let plan = plan_pod(&node, &options, backend);
                let choice = kernel::Choice::Only(backend);
                let sparing = sparing.map(|sparing| sparing.begin(inside));
                let applied = kernel.kernel().apply(inside, choice, |_| plan.clone());
                let mut spared = Spared::default();
                if let Some((sparing, begun)) = sparing {
                    spared = begun;
                    sparing.end(inside, applied.is_ok(), &mut spared);
                }
                let applied =
                    applied.map_err(|error| Failure::Rules(holder::text(inside, &error, &proc_root)));
                let applied = applied.map(|applied| {
                    let seen = evidence.take(inside, kernel.kernel(), (&plan, applied.rules), &subject);
                    (applied, seen)
                });
                (applied, spared)
            };
            Ok(netns.enter(apply)?)
        });
        let (applied, spared) = applied.await??;
        member.strict |= spared.strict;
        for warning in spared.warnings {
            self.log.warn(&warning, &[("pod", &member.key)]);
        }
        let (applied, seen) = applied?;
        self.tell_seen(member, &seen);
        self.backends.log_warnings(&self.log);
        if let Some(warning) = &applied.warning {
            self.log.warn(warning, &[("pod", &member.key)]);
        }
        if applied.rules == Change::Replaced || applied.moved {
            let labels: [telemetry::Label<'_>; 2] = [("pod", &member.key), ("other_backend", &applied.moved)];
            self.log.info("rules of another layout were replaced", &labels);
        }
        Ok(Some(applied))
    }

    /// Tells what has changed about rules of others in the pod's namespace.
    pub(super) fn tell_seen(&self, member: &Member, seen: &Seen) {
        let pod = &member.key;
        seen.new.iter().for_each(|text| self.log.error(text, &[("pod", &pod)]));
        seen.warnings.iter().for_each(|text| self.log.warn(text, &[("pod", &pod)]));
        if seen.over {
            self.log.info("nothing shadows the rules of a pod any more", &[("pod", &pod)]);
        }
        self.metrics.shadowed(self.evidence.shadowed());
    }

    /// The node's options that are in force for a pod.
    pub(super) fn node_options(&self, member: &Member) -> Arc<NodeOptions> {
        member.node.clone().unwrap_or_else(|| self.config.node.now())
    }

    /// A pod whose rules cannot be had is not in the mesh at all: its ztunnel is told, its probes go the usual way.
    async fn take_back(&self, member: &mut Member) {
        if let Err(error) = self.pick_up_again(member).await {
            self.log.warn(&error, &[("pod", &member.key)]);
        }
        self.forget(member).await;
        if member.acked.get()
            && let Err(error) = self.ztunnels.remove(&member.key.uid).await
        {
            self.log.warn(&error, &[("pod", &member.key)]);
        }
        if let Err(error) = self.host().and_then(|host| host.remove(&member.ips, &member.key.uid)) {
            self.log.warn(&error, &[("pod", &member.key)]);
        }
    }

    /// Pods whose traffic would pass by the rules that they would get.
    pub(super) fn refuse(&self, facts: &Facts, ips: &[IpAddr]) -> Result<(), Failure> {
        Ok(self.config.refuse(facts.pod.runtime_class(), ips)?)
    }

    /// Whether the sandbox that a plugin announced is gone: its file does not stand for the namespace any more. One that cannot be looked at,
    /// for want of descriptors say, is there: rules that nobody removes are worse than a sandbox that is forgotten late.
    pub(super) fn is_gone(member: &Member) -> bool {
        use netns::{Error, OpenCause};
        let gone = |netns: &Netns| match Netns::open(netns.path()) {
            Ok(there) => &there != netns,
            Err(Error::Open { cause: OpenCause::Denied, .. }) => false,
            Err(Error::Open { cause: OpenCause::Io(cause), .. }) => {
                let errno = Errno::from_io_error(&cause);
                !matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
            }
            Err(_) => true,
        };
        member.given && member.netns.as_deref().is_none_or(gone)
    }
}
