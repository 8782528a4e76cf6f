//! Pods that translate destinations of what comes in themselves: they have a plan of their own ([`plan_translating_pod`]).
//!
//! Whether a pod does is looked up in its namespace when rules are loaded or compared, and whenever it is verified; its record keeps by which plan its
//! rules are made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use capture::ambient::{NodeOptions, PodOptions, no_rules, plan_pod, plan_translating_pod};
use kernel::give_way;
use kernel::observed::others_translate;
use netns::Inside;
use ruleset::{Backend, Plan};

use super::Ambient;
use super::failure::AmbientFailure;
use super::members::Member;
use super::ports::Disk as _;
use crate::verification::ActAtOnce;

/// Makes a pod's plan inside of its namespace.
pub(super) struct PodPlanner {
    node: Arc<NodeOptions>,
    options: PodOptions,
    backend: Backend,
    /// What was known before.
    translated: bool,
    one_step: Arc<AtomicBool>,
}

impl PodPlanner {
    /// The plan, and whether it is that of a pod which translates. Where that cannot be asked it is what it was.
    pub(super) fn plan(&self, inside: &Inside) -> (Plan, bool) {
        let translates = self.translates(inside);
        (self.of(translates), translates)
    }

    fn translates(&self, inside: &Inside) -> bool {
        self.seen_to_translate(inside).unwrap_or(self.translated && !self.one_step.load(Ordering::Relaxed))
    }

    /// The same; nothing where it cannot be asked.
    fn seen_to_translate(&self, inside: &Inside) -> Option<bool> {
        let now = others_translate(inside, &[no_rules()]).ok()?;
        Some(now && !self.one_step.load(Ordering::Relaxed))
    }

    /// Whether that is what was known before.
    pub(super) fn is_as_known(&self, translates: bool) -> bool {
        self.translated == translates
    }

    /// The plan that other pods have: it needs nothing more than ambient mode does. `is_missing`: the kernel lacks a part for good.
    pub(super) fn without(&self, is_missing: bool) -> Plan {
        self.one_step.fetch_or(is_missing, Ordering::Relaxed);
        self.of(false)
    }

    fn of(&self, translates: bool) -> Plan {
        pod_plan(&self.node, &self.options, self.backend, translates)
    }
}

/// The plan of a pod.
pub(super) fn pod_plan(node: &NodeOptions, pod: &PodOptions, backend: Backend, translates: bool) -> Plan {
    if translates { plan_translating_pod(node, pod, backend) } else { plan_pod(node, pod, backend) }
}

impl Ambient {
    pub(super) fn planner(&self, member: &Member) -> Result<PodPlanner, AmbientFailure> {
        Ok(PodPlanner {
            node: self.node_options(member),
            options: member.options.clone(),
            backend: self.host()?.backend(),
            translated: member.translates,
            one_step: self.pods.plans.one_step.clone(),
        })
    }

    /// Notes by which plan a pod's rules are made; the next agent is to know it.
    pub(super) async fn note_translates(&self, member: &Member, translates: bool) {
        let changed = self.pods.members.change(&member.key.uid, |member| {
            (member.translates, member.translates_now) = (translates, translates);
        });
        if member.translates == translates {
            return;
        }
        let text = match translates {
            true => "the pod translates destinations itself: its rules capture before and after that",
            false => "the pod does not translate destinations itself any more",
        };
        self.log.info(text, &[("pod", &member.key)]);
        if let Some(member) = changed {
            self.keep(&member).await;
        }
    }

    /// Looks whether a pod translates, in a namespace that is as planned. If that is new its rules are loaded anew. Whether it is as known.
    pub(super) fn look_for_translations(&self, inside: &Inside, member: &Member) -> bool {
        let Some(now) = self.seen_to_translate(inside, member) else { return false };
        if now != member.translates {
            self.pods.queue.push(member.key.clone());
        }
        now == member.translates
    }

    /// Whether a pod has begun or ended to translate since the last look; its rules are loaded anew then.
    pub(super) fn begins_or_ends_to_translate(&self, inside: &Inside, member: &Member) -> bool {
        let now = self.seen_to_translate(inside, member);
        let is_news = now.is_some_and(|now| now != member.translates_now && now != member.translates);
        if is_news {
            self.pods.queue.push(member.key.clone());
        }
        is_news
    }

    /// Lets a pod's own translation work from the moment in which its rule comes, until rules of the other plan are loaded: in iptables that is behind
    /// ours.
    pub(super) fn give_way(&self, member: &Member) -> Option<ActAtOnce> {
        let planner = self.planner(member).ok()?;
        let is_behind = planner.backend == Backend::Iptables
            && !planner.translated
            && !planner.options.ingress
            && !planner.one_step.load(Ordering::Relaxed);
        let (log, key) = (self.log.clone(), member.key.clone());
        let act = move |inside: &Inside| match give_way(inside, &[no_rules()]) {
            Ok(false) => {}
            Ok(true) => {
                log.info(
                    "the pod begins to translate destinations itself: its rules come first",
                    &[("pod", &key)],
                );
            }
            Err(error) => log.debug(&error, &[("pod", &key)]),
        };
        is_behind.then(|| Box::new(act) as ActAtOnce)
    }

    /// Nothing where it cannot be asked.
    fn seen_to_translate(&self, inside: &Inside, member: &Member) -> Option<bool> {
        let now = self.planner(member).ok()?.seen_to_translate(inside)?;
        if now && let Some(act) = self.give_way(member) {
            act(inside);
        }
        if now != member.translates_now {
            self.pods.members.change(&member.key.uid, |member| member.translates_now = now);
        }
        Some(now)
    }

    /// Loads the rules of a pod anew that was seen to begin or to end to translate; gives what is known of it then. Whoever calls has its turn.
    pub(super) async fn follow_translations(&self, member: Member) -> Result<Member, AmbientFailure> {
        if member.translates == member.translates_now || !member.is_verified() {
            return Ok(member);
        }
        self.put_right(member.clone(), false).await?;
        Ok(self.pods.members.get(&member.key.uid).unwrap_or(member))
    }
}
