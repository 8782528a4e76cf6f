//! Rules of ours in a pod's network namespace.

use std::path::PathBuf;
use std::sync::Arc;

use capture::ambient::{CAPTURE_PORTS, NodeOptions, plan_drain, plan_of_everything};
use intent::{Look, Observation};
use kernel::{Applied, Change, Choice, Difference, conntrack};
use netns::Inside;
use ruleset::{Backend, Plan};

use super::Ambient;
use super::evidence::{Evidence, RecordSubject, SeenInNetns};
use super::failure::{AmbientFailure, Cleanup, InKernel};
use super::holder;
use super::members::Member;
use super::ports::{Loaded, PodRules};
use super::translating::PodPlanner;
use crate::backends::Backends;
use crate::slots::Task;
use crate::spare::{Spared, Sparing};

/// Whether rules are loaded that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    IfTheyDiffer,
}

/// What it takes to program a pod's rules, inside of its namespace.
struct Programming {
    backends: Arc<Backends>,
    backend: Backend,
    planner: PodPlanner,
    sparing: Option<Sparing>,
    evidence: Arc<Evidence>,
    subject: RecordSubject,
    proc_root: PathBuf,
}

/// What came of it.
struct Programmed {
    spared: Spared,
    /// Nothing: all is as planned.
    applied: Result<Option<Applied>, AmbientFailure>,
    /// What the namespace shows where all is as planned, by now at least.
    seen: Option<SeenInNetns>,
    translates: bool,
}

impl Programming {
    fn program(self, inside: &Inside, when: When) -> Result<Programmed, AmbientFailure> {
        let kernel = self.backends.kernel();
        let (mut plan, mut translates) = self.planner.plan(inside);
        let take = |plan: &Plan, change| self.evidence.take(inside, kernel, (plan, change), &self.subject);
        // Those of another plan than before differ for certain.
        if when == When::IfTheyDiffer && self.planner.is_as_known(translates) {
            let found = kernel.observe(inside, &plan);
            let found = found.map_err(|error| AmbientFailure::Rules(InKernel::new(error, None)))?;
            if found.is_empty() {
                let seen = Some(take(&plan, Change::None));
                return Ok(Programmed { spared: Spared::default(), applied: Ok(None), seen, translates });
            }
        }
        let sparing = self.sparing.map(|sparing| sparing.begin(inside));
        let load = |plan: &Plan| kernel.apply(inside, Choice::Only(self.backend), |_| plan.clone());
        let mut applied = load(&plan);
        let mut one_step = None;
        if let (Err(error), true) = (&applied, translates) {
            let text = "rules before and after the pod's own translations cannot be loaded; a translation that comes first takes its packets past the mesh";
            one_step = Some(format!("{text}: {}", fault::chain(error)));
            // Captured in one step is better than not at all.
            (plan, translates) = (self.planner.without(error.is_backend_missing()), false);
            applied = load(&plan);
        }
        let mut spared = Spared::default();
        if let Some((sparing, begun)) = sparing {
            spared = begun;
            sparing.end(inside, applied.is_ok(), &mut spared);
        }
        spared.warnings.extend(one_step);
        let seen = applied.as_ref().ok().map(|applied| take(&plan, applied.rules));
        let applied = applied.map(Some).map_err(|error| {
            let process = holder::process(inside, &error, &self.proc_root);
            AmbientFailure::Rules(InKernel::new(error, process))
        });
        Ok(Programmed { spared, applied, seen, translates })
    }
}

impl PodRules for Ambient {
    async fn load(&self, member: &Member, spare: bool) -> Loaded {
        let programmed = self.program(member, spare, When::Always).await;
        // Where they are always loaded they are.
        self.loaded(member, programmed).await.unwrap_or(Loaded { strict: false, changed: Ok(false) })
    }

    async fn repair(&self, member: &Member) -> Option<Loaded> {
        let programmed = self.program(member, true, When::IfTheyDiffer).await;
        self.loaded(member, programmed).await
    }

    async fn drain(&self, member: &Member) -> Result<bool, AmbientFailure> {
        let Some(netns) = member.netns.clone() else { return Ok(false) };
        let (kernel, backend) = (self.node.backends.clone(), self.host()?.backend());
        let plan = plan_drain(&self.node_options(member), &member.options, backend);
        let (evidence, known) = (self.kept.evidence.clone(), member.have.is_captured());
        let drained = self.in_pod(&member.key, Task::Clear, move || -> Result<bool, AmbientFailure> {
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
            netns.enter(drain)?.map_err(|error| Cleanup::from(InKernel::new(error, None)).into())
        });
        let drained = drained.await.map_err(Cleanup::Unfinished)??;
        self.node.backends.log_warnings(&self.log);
        Ok(drained)
    }

    async fn remove(&self, member: &Member) -> Result<(), AmbientFailure> {
        let Some(netns) = member.netns.clone() else { return Ok(()) };
        if let Some(policies) = self.pods.policies.get() {
            policies.leave(&member.key).await;
        }
        let (kernel, backend) = (self.node.backends.clone(), self.host()?.backend());
        let evidence = self.kept.evidence.clone();
        let removed = self.in_pod(&member.key, Task::Clear, move || -> Result<(), AmbientFailure> {
            // What cannot be forgotten now is when the namespace is no member's any more.
            let _ = evidence.forget(netns.id());
            let everything = plan_of_everything(backend);
            let remove = |inside: &Inside| kernel.kernel().cleanup(inside, &everything);
            netns.enter(remove)?.map_err(Cleanup::from)?;
            Ok(())
        });
        removed.await.map_err(Cleanup::Unfinished)??;
        self.node.backends.log_warnings(&self.log);
        Ok(())
    }

    async fn restore_tracking(&self, member: &Member) -> Result<(), AmbientFailure> {
        let Some(netns) = member.netns.clone() else { return Ok(()) };
        let set = move || netns.enter(|inside| conntrack::set_strict(inside, false));
        let set = self.in_pod(&member.key, Task::Clear, set).await??;
        set.map_err(Cleanup::from)?;
        Ok(())
    }
}

impl Ambient {
    /// Takes what came of programming the rules of a pod; nothing where they were as planned.
    async fn loaded(
        &self,
        member: &Member,
        programmed: Result<Programmed, AmbientFailure>,
    ) -> Option<Loaded> {
        let Programmed { spared, applied, seen, translates } = match programmed {
            Ok(programmed) => programmed,
            Err(failure) => return Some(Loaded { strict: false, changed: Err(failure) }),
        };
        let warnings = spared.warnings.iter();
        warnings.for_each(|warning| self.log.warn(warning, &[("pod", &member.key)]));
        if applied.is_ok() {
            self.note_translates(member, translates).await;
        }
        if let Some(seen) = &seen {
            self.tell_seen(member, seen);
        }
        self.node.backends.log_warnings(&self.log);
        let changed = match applied {
            Ok(None) => return None,
            Ok(Some(applied)) => {
                self.tell_applied(member, &applied);
                Ok(applied.rules != Change::None || applied.moved || applied.routing > 0)
            }
            Err(failure) => Err(failure),
        };
        Some(Loaded { strict: spared.strict, changed })
    }

    /// Programs the rules of a pod whose namespace is known; `spares` what it has open.
    async fn program(&self, member: &Member, spares: bool, when: When) -> Result<Programmed, AmbientFailure> {
        let Some(netns) = member.netns.clone() else {
            return Err(AmbientFailure::NotFound(netns::find::MissingNetns::NoProcess));
        };
        let programming = Programming {
            backends: self.node.backends.clone(),
            backend: self.host()?.backend(),
            planner: self.planner(member)?,
            sparing: spares.then(|| self.sparing(member)),
            evidence: self.kept.evidence.clone(),
            subject: RecordSubject::of(member),
            proc_root: self.config.proc_root(),
        };
        if let Some(policies) = self.pods.policies.get() {
            policies.enter(&member.key, &netns, !spares).await;
        }
        let program = move || netns.enter(|inside| programming.program(inside, when));
        self.in_pod(&member.key, Task::Program, program).await??
    }

    /// How what a pod has open is spared. That is in its record before it begins.
    fn sparing(&self, member: &Member) -> Sparing {
        let mut changed = member.clone();
        changed.have.see(Observation::Strict);
        let (records, changed) = (self.kept.records.clone(), self.record_of(&changed));
        Sparing {
            note: Box::new(move || records.write(changed).err().map(|error| error.to_string())),
            ports: CAPTURE_PORTS.to_vec(),
            guests: !member.options.virtual_interfaces.is_empty(),
        }
    }

    fn tell_applied(&self, member: &Member, applied: &Applied) {
        if let Some(warning) = &applied.warning {
            self.log.warn(warning, &[("pod", &member.key)]);
        }
        if applied.rules == Change::Replaced || applied.moved {
            let labels: [telemetry::Label<'_>; 2] = [("pod", &member.key), ("other_backend", &applied.moved)];
            self.log.info("the pod's rules differed from the planned ones and were replaced", &labels);
        }
    }

    /// Tells what has changed about rules of others in the pod's namespace.
    pub(super) fn tell_seen(&self, member: &Member, seen: &SeenInNetns) {
        let pod = &member.key;
        seen.new.iter().for_each(|text| self.log.error(text, &[("pod", pod)]));
        seen.warnings.iter().for_each(|text| self.log.warn(text, &[("pod", pod)]));
        if seen.over {
            self.log.info("nothing shadows the rules of a pod any more", &[("pod", pod)]);
        }
        self.metrics.shadowed(self.kept.evidence.shadowed());
    }

    /// The node's options that are in force for a pod.
    pub(super) fn node_options(&self, member: &Member) -> Arc<NodeOptions> {
        member.node.clone().unwrap_or_else(|| self.config.node.now())
    }

    /// Looks at the rules of a pod without touching them; those of another layout are to stay.
    pub(super) async fn observe(&self, member: &Member) -> Result<Observation, AmbientFailure> {
        let differences = self.differences(member).await?;
        if differences.is_empty() {
            return Ok(Observation::Rules(Look::AsPlanned));
        }
        self.metrics.drifted();
        let absent = |difference: &Difference| {
            use Difference::{MissingChain, MissingRouting, MissingRule, MissingTable};
            matches!(
                difference,
                MissingTable { .. } | MissingChain { .. } | MissingRule { .. } | MissingRouting { .. }
            )
        };
        if differences.iter().all(absent) {
            // Not of another layout: gone, or never there.
            return Ok(Observation::Rules(Look::Unknown));
        }
        let text = "the rules of a pod differ; AMBIENT_RECONCILE_POD_RULES_ON_STARTUP is off";
        let labels: [telemetry::Label<'_>; 2] = [("pod", &member.key), ("differences", &differences.len())];
        self.log.warn(text, &labels);
        Ok(Observation::Rules(Look::Left))
    }

    /// The differences between a pod's namespace and its plan. Where there is none the plan is what was applied.
    async fn differences(&self, member: &Member) -> Result<Vec<Difference>, AmbientFailure> {
        let Some(netns) = member.netns.clone() else { return Ok(Vec::new()) };
        let (backends, planner) = (self.node.backends.clone(), self.planner(member)?);
        let (evidence, subject) = (self.kept.evidence.clone(), RecordSubject::of(member));
        let found = self.in_pod(&member.key, Task::Verify, move || {
            let observe = |inside: &Inside| {
                let (plan, translates) = planner.plan(inside);
                let found = backends.kernel().observe(inside, &plan)?;
                let of = (&plan, Change::None);
                let as_planned =
                    found.is_empty().then(|| evidence.take(inside, backends.kernel(), of, &subject));
                Ok((found, as_planned, translates))
            };
            netns
                .enter(observe)?
                .map_err(|error: kernel::Error| AmbientFailure::Rules(InKernel::new(error, None)))
        });
        let (found, seen, translates) = found.await??;
        if found.is_empty() {
            self.note_translates(member, translates).await;
        }
        seen.iter().for_each(|seen| self.tell_seen(member, seen));
        self.node.backends.log_warnings(&self.log);
        Ok(found)
    }
}
