//! What counts comes into pods' network namespaces, follows what is known of other pods, and goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use enforcement::{MemberNews, UsageMeter};
use facts::Object;
use netns::find::MissingNetns;
use policy::index::LocalName;
use tokio::task::JoinSet;
use usage::{CountedPod, PodKey, UsagePlan};

use super::{MOST_TRIES, MeteredPod, UsageFailure, UsageKeeper, UsageParts, let_go, seconds, told};
use crate::finder::{self, FindFailure};
use crate::policy::pod_point::PodPointFailure;
use crate::slots::Task;

/// After so many tries it is told that a pod has no process yet.
const TOLD_TRIES: u32 = 5;
/// After so long in one pod's namespace it is gone on with the next pod's: a kernel is busy there.
const SLOW: Duration = Duration::from_millis(250);
const PANICKED: &str = "the work on a pod's counters panicked; this is a defect, please report it";

/// A pod that is to be counted.
pub(super) struct PodToCount {
    pub(super) key: PodKey,
    pub(super) object: Arc<Object>,
    pub(super) tenant: Box<str>,
    pub(super) plan: Arc<UsagePlan>,
}

// === impl UsageKeeper ===

impl UsageKeeper {
    /// Pods that have another network namespace than the one that is read are counted there.
    pub(super) async fn forget_moved(&mut self, wanted: &BTreeMap<LocalName, PodToCount>) {
        let mut moved = Vec::new();
        for (name, pod) in &self.pods {
            let Some(wanted) = wanted.get(name).filter(|wanted| wanted.key == pod.counted.key) else {
                continue;
            };
            let at = self.parts.keeper.locate(name, Some(&wanted.object)).await;
            if at.is_ok_and(|(netns, _)| netns.id().ino != pod.counted.netns) {
                moved.push(name.clone());
            }
        }
        self.read(moved.clone()).await;
        let_go(moved.iter().filter_map(|name| self.pods.remove(name)));
    }

    /// Tells the kernel who is in the classes of pods that are counted.
    pub(super) async fn follow(&mut self, wanted: &BTreeMap<LocalName, PodToCount>) {
        let mut changing = Vec::new();
        for (name, wanted) in wanted {
            let is_it = |pod: &MeteredPod| {
                pod.counted.tenant == wanted.tenant
                    && !Arc::ptr_eq(pod.meter.plan(), &wanted.plan)
                    && pod.meter.can_follow(&wanted.plan)
            };
            if self.pods.get(name).is_some_and(is_it)
                && let Some((name, pod)) = self.pods.remove_entry(name)
            {
                changing.push((name, pod, wanted));
            }
        }
        if changing.is_empty() {
            return;
        }
        let plan = |(_, pod, wanted): &(LocalName, MeteredPod, &PodToCount)| {
            (pod.meter.plan().clone(), wanted.plan.clone())
        };
        let plans: Vec<_> = changing.iter().map(plan).collect();
        let news = tokio::task::spawn_blocking(move || all_news(&plans)).await;
        let news = news.unwrap_or_else(|error| {
            self.parts.log.error(PANICKED, &[("error", &error)]);
            Vec::new()
        });
        // Those of a panic are made anew.
        let_go(changing.drain(news.len()..).map(|(_, pod, _)| pod));
        let mut works = JoinSet::new();
        for ((name, mut pod, wanted), news) in changing.into_iter().zip(news) {
            let (parts, object) = (self.parts.clone(), wanted.object.clone());
            works.spawn(async move {
                let follow = move || match pod.meter.follow(&news) {
                    Ok(()) => Ok(pod),
                    Err(error) => Err(error.into()),
                };
                (name, parts.program(&object, follow).await)
            });
        }
        while let Some(done) = works.join_next().await {
            match done {
                Ok((name, Ok(pod))) => let_go(self.pods.insert(name, pod)),
                // What is there goes on, and is put right.
                Ok((name, Err(error))) => self.parts.tell(&name, &error),
                Err(error) => self.parts.log.error(PANICKED, &[("error", &error)]),
            }
        }
    }

    /// Makes what counts where it is not, or has other classes. Whether there is such a pod now. Where it was tried often it is tried when counters are read.
    pub(super) async fn place(&mut self, wanted: &BTreeMap<LocalName, PodToCount>, is_due: bool) -> bool {
        let is_counted = |(name, wanted): &(&LocalName, &PodToCount)| {
            let known = self.pods.get(*name);
            known.is_some_and(|pod| {
                pod.counted.tenant == wanted.tenant && Arc::ptr_eq(pod.meter.plan(), &wanted.plan)
            })
        };
        let is_tried = |(name, _): &(&LocalName, &PodToCount)| {
            !is_due && self.missing.get(*name).is_some_and(|(_, tries)| *tries >= MOST_TRIES)
        };
        let lacking: Vec<(&LocalName, &PodToCount)> =
            wanted.iter().filter(|one| !is_counted(one) && !is_tried(one)).collect();
        if lacking.is_empty() {
            return false;
        }
        let objects = lacking.iter().map(|(name, wanted)| (*name, &*wanted.object));
        self.parts.keeper.look_for(objects.collect()).await;
        let mut works = JoinSet::new();
        for (name, wanted) in lacking {
            self.records.book().expect(seconds(), &wanted.key, &told(name), &wanted.tenant);
            let (parts, name) = (self.parts.clone(), name.clone());
            let PodToCount { key, object, tenant, plan } = wanted;
            let (key, object, tenant, plan) = (key.clone(), object.clone(), tenant.clone(), plan.clone());
            works.spawn(async move {
                let done = parts.open(&name, &object, (key.clone(), tenant), plan).await;
                (name, key, done)
            });
        }
        let mut placed = Vec::new();
        while let Some(done) = works.join_next().await {
            match done {
                Ok((name, _, Ok(pod))) => {
                    self.missing.remove(&name);
                    let_go(self.pods.insert(name.clone(), pod));
                    placed.push(name);
                }
                Ok((name, key, Err(error))) => self.fails(&name, key, &error),
                Err(error) => self.parts.log.error(PANICKED, &[("error", &error)]),
            }
        }
        let is_news = !placed.is_empty();
        self.read(placed).await;
        is_news
    }

    fn fails(&mut self, name: &LocalName, key: PodKey, error: &UsageFailure) {
        let (_, tries) = self.missing.entry(name.clone()).or_insert((key, 0));
        *tries = (*tries + 1).min(MOST_TRIES);
        let has_none = matches!(
            error,
            UsageFailure::Place(PodPointFailure::Find(FindFailure::Missing(MissingNetns::NoProcess)))
        );
        if *tries == if has_none { TOLD_TRIES } else { 1 } {
            self.parts.tell(name, error);
        }
    }
}

/// What is new for each pod. Pods of a tenant have the same plans.
fn all_news(plans: &[(Arc<UsagePlan>, Arc<UsagePlan>)]) -> Vec<Arc<MemberNews>> {
    let mut known = BTreeMap::new();
    let news = |(before, now): &(Arc<UsagePlan>, Arc<UsagePlan>)| {
        let pair = (Arc::as_ptr(before), Arc::as_ptr(now));
        known.entry(pair).or_insert_with(|| Arc::new(MemberNews::between(before, now))).clone()
    };
    plans.iter().map(news).collect()
}

// === impl UsageParts ===

impl UsageParts {
    pub(super) fn tell(&self, name: &LocalName, error: &UsageFailure) {
        let text = "the traffic of a tenant's pod is not counted";
        self.log.warn(text, &[("pod", &told(name)), ("error", &fault::chain(error))]);
    }

    /// Makes what counts in a pod's namespace, or changes it.
    async fn open(
        &self,
        name: &LocalName,
        object: &Object,
        (key, tenant): (PodKey, Box<str>),
        plan: Arc<UsagePlan>,
    ) -> Result<MeteredPod, UsageFailure> {
        let (netns, roots) = self.keeper.locate(name, Some(object)).await?;
        let (addresses, at) = (object.ips(), netns.id().ino);
        let work = move || -> Result<UsageMeter, UsageFailure> {
            netns::find::belongs_to(&netns, roots.host, &addresses, &finder::addresses)
                .map_err(PodPointFailure::from)?;
            let opened = netns.enter(|inside| UsageMeter::open(inside, &plan));
            Ok(opened.map_err(PodPointFailure::from)??)
        };
        let meter = self.program(object, work).await?;
        let is_fresh = meter.is_fresh();
        let counted = CountedPod { key, name: told(name).into(), tenant, netns: at, is_fresh };
        Ok(MeteredPod { counted, meter })
    }

    /// Works in a pod's namespace, one pod after the other: pods' rules are loaded in the same way, and come before it.
    async fn program<T: Send + 'static>(
        &self,
        object: &Object,
        work: impl FnOnce() -> Result<T, UsageFailure> + Send + 'static,
    ) -> Result<T, UsageFailure> {
        // Never closed.
        let turn = self.turn.acquire().await.ok();
        let key = object.pod_ref();
        let mut run = std::pin::pin!(self.slots.run(&key, Task::Program, work));
        let done = match tokio::time::timeout(SLOW, &mut run).await {
            Ok(done) => done,
            Err(_) => {
                drop(turn);
                run.await
            }
        };
        done.map_err(PodPointFailure::from)?
    }

    /// Removes what counts in the namespace of a pod that is there still. Where it stays it counts on, and nobody reads it.
    pub(super) async fn remove(&self, name: &LocalName, key: &PodKey) {
        let object = self.cluster.index().pod(&name.namespace, &name.name).cloned();
        let object = object.filter(|pod| !pod.is_terminal() && pod.uid() == Some(&*key.0));
        if let Some(object) = object
            && let Err(error) = self.clear(name, &object).await
        {
            let text = "what counts the traffic of a pod is not removed";
            self.log.warn(text, &[("pod", &told(name)), ("error", &fault::chain(&error))]);
        }
    }

    pub(super) async fn clear(&self, name: &LocalName, object: &Object) -> Result<(), UsageFailure> {
        let (netns, roots) = match self.keeper.locate(name, Some(object)).await {
            // Nothing runs there.
            Err(PodPointFailure::Find(FindFailure::Missing(MissingNetns::NoProcess))) => return Ok(()),
            found => found?,
        };
        let addresses = object.ips();
        let work = move || -> Result<(), UsageFailure> {
            let found = netns::find::belongs_to(&netns, roots.host, &addresses, &finder::addresses);
            found.map_err(PodPointFailure::from)?;
            netns.enter(UsageMeter::remove).map_err(PodPointFailure::from)??;
            Ok(())
        };
        let done = self.slots.run(&object.pod_ref(), Task::Clear, work).await;
        done.map_err(PodPointFailure::from)?
    }
}
