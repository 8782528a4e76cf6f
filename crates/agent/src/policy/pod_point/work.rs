//! What the book wants of a pod is carried out where its processes are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use enforcement::PodJob;
use facts::PodRef;
use kernel::Change;
use kernel::watch::KeptSockets;
use netns::find::{MissingNetns, SearchRoots};
use netns::{Netns, NetnsId};
use policy::compile::ClusterInterface;
use policy::index::LocalName;
use ruleset::{Backend, InterfaceName};

use super::{PodPointFailure, PodPointKeeper, load, pod_of};
use crate::backends::Backends;
use crate::finder::{self, FindFailure, wanted_netns};
use crate::slots::Task;

// === impl PodPointKeeper ===

impl PodPointKeeper {
    /// The namespace of a pod; nothing where it has none to be worked on.
    pub(in super::super) async fn locate(
        &self,
        name: &LocalName,
        pod: Option<&facts::Object>,
    ) -> Result<(Arc<Netns>, SearchRoots), PodPointFailure> {
        let host = self.host().map_err(PodPointFailure::Host)?;
        let roots = SearchRoots { proc_root: self.parts.proc_root.clone(), host: host.id() };
        if let Some(netns) = self.tunnelled(name) {
            return Ok((netns, roots));
        }
        let known = self.places().get(name).cloned();
        if let Some(netns) = known.filter(|netns| finder::is_still(netns)) {
            return Ok((netns, roots));
        }
        let missing = MissingNetns::NoProcess;
        let pod = pod.ok_or(PodPointFailure::Find(FindFailure::Missing(missing)))?;
        let wanted = wanted_netns(pod, &self.parts.kernel_network_runtime_classes);
        let found = Arc::new(self.finder.find(&roots, wanted, Vec::new).await?);
        self.places().insert(name.clone(), found.clone());
        Ok((found, roots))
    }

    /// Looks for the namespaces of many pods at once, so that [`Self::locate`] has them.
    pub(in super::super) async fn look_for(&self, pods: Vec<(&LocalName, &facts::Object)>) {
        let is_known = |name: &LocalName| {
            let known = self.places().get(name).cloned();
            self.tunnelled(name).is_some() || known.is_some_and(|netns| finder::is_still(&netns))
        };
        let lacking: Vec<_> = pods.into_iter().filter(|(name, _)| !is_known(name)).collect();
        // One is looked for when it is asked for.
        let (Ok(host), 2..) = (self.host(), lacking.len()) else { return };
        let roots = SearchRoots { proc_root: self.parts.proc_root.clone(), host: host.id() };
        let of = |pod| wanted_netns(pod, &self.parts.kernel_network_runtime_classes);
        let wanted = lacking.iter().map(|(_, pod)| of(pod)).collect();
        let Ok(mut found) = self.finder.find_all(&roots, wanted).await else { return };
        let mut places = self.places();
        for (name, pod) in lacking {
            let netns = pod.uid().and_then(|uid| found.remove(uid));
            places.extend(netns.map(|netns| (name.clone(), Arc::new(netns))));
        }
    }

    pub(super) async fn work_on(&self, name: &LocalName) -> Result<(), PodPointFailure> {
        let pod = self.parts.cluster.index().pod(&name.namespace, &name.name).cloned();
        // A plugin tells of a pod before its watch does.
        let is_over = pod.as_ref().map_or_else(|| !self.is_placed(name), |pod| pod.is_terminal());
        if is_over {
            let until = self.guarded().get(name).copied();
            // Its watch may be behind the plugin that has guarded it.
            if pod.is_none() && until.is_some_and(|until| Instant::now() < until) {
                return Err(PodPointFailure::NotYet);
            }
            self.places().remove(name);
            self.hearing.forget(name);
            return Ok(());
        }
        let key = pod.as_ref().map_or_else(|| pod_of(name), |pod| pod.pod_ref());
        let Some(job) = self.book().job(name) else { return Ok(()) };
        let (netns, roots) = match self.locate(name, pod.as_deref()).await {
            Ok(found) => found,
            // Nothing runs there, so there is nothing to remove.
            Err(PodPointFailure::Find(FindFailure::Missing(why))) if job.rules.is_none() => {
                let until = self.guarded().get(name).copied();
                // Without a pause container its first process comes when its images are there.
                let starts = pod.as_ref().is_some_and(|pod| pod.phase() == "Pending");
                if until.is_some_and(|until| starts || Instant::now() < until) {
                    return Err(PodPointFailure::NotYet);
                }
                // It may run, and be guarded.
                let is_unknown = matches!(
                    why,
                    MissingNetns::Failed(_) | MissingNetns::Several(_) | MissingNetns::OtherOwner
                );
                if until.is_some() && is_unknown {
                    return Err(FindFailure::Missing(why).into());
                }
                self.book().done(name, &job);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let (at, done) = (netns.clone(), self.carry_out(name, &key, &job, (netns, roots)).await);
        match done {
            Ok(true) => Ok(()),
            Err(error) if self.book().is_of(name, &job) => Err(error),
            // It has gone meanwhile, and what was found of it is not the next one's of its name.
            Ok(false) | Err(_) => {
                self.places().retain(|known, netns| known != name || *netns != at);
                Ok(())
            }
        }
    }

    fn addresses(&self, name: &LocalName) -> Vec<IpAddr> {
        let index = self.parts.cluster.index();
        index.pod(&name.namespace, &name.name).map(|pod| pod.ips()).unwrap_or_default()
    }

    /// A pod's addresses as its watch tells them, else as its plugin did.
    fn told_addresses(&self, name: &LocalName, watched: &[IpAddr]) -> Vec<IpAddr> {
        match watched {
            [] => self.attached().get(name).cloned().unwrap_or_default(),
            _ => watched.to_vec(),
        }
    }

    /// Whether the pod was there still when it was done.
    async fn carry_out(
        &self,
        name: &LocalName,
        key: &PodRef,
        job: &PodJob,
        (netns, roots): (Arc<Netns>, SearchRoots),
    ) -> Result<bool, PodPointFailure> {
        let (found, most) = (job.elements, self.parts.most_elements);
        let is_too_large = found > most;
        let addresses = self.addresses(name);
        let (at, last) = (netns.id(), self.interfaces().get(name).cloned());
        let is_new = job.rules.is_some() && !self.hearing.is_in(name, at);
        let writer = self.hearing.writer(name);
        let load = PodLoad {
            netns,
            host: roots.host,
            told: self.told_addresses(name, &addresses),
            addresses,
            last: last.clone(),
            job: if is_too_large { self.book().closed(name, job) } else { job.clone() },
            is_heard: !is_new,
            backends: self.parts.backends.clone(),
            backend: self.book().backend(),
        };
        let by_programs = load.backend == Backend::Iptables;
        let load = move || load.run();
        let (change, interface, kept) = self.parts.slots.run(key, Task::Program, load).await??;
        self.parts.backends.log_warnings(&self.parts.log);
        let mut book = self.book();
        if !book.is_of(name, job) {
            return Ok(false);
        }
        // While the book is held, so that a pod which goes now is forgotten after that.
        if is_new {
            self.hearing.add(name, at, kept);
            self.more_inside.notify_one();
        } else if job.rules.is_none() {
            self.hearing.forget(name);
        }
        let is_known = !is_too_large && book.done(name, job);
        let is_other = interface != last;
        match interface {
            Some(interface) => _ = self.interfaces().insert(name.clone(), interface),
            None => _ = self.interfaces().remove(name),
        }
        drop(book);
        if by_programs && !is_new && change != Change::None && self.hearing.loaded_by_programs(name) {
            // Others may have been among them.
            self.look_again(name);
        }
        self.guarded().remove(name);
        if is_too_large {
            self.tell_too_large(name, key, found);
            return Err(PodPointFailure::TooMany { found, most });
        }
        self.too_large().remove(name);
        if let Some(told) = self.tunnel_loaded.get().filter(|_| is_known && job.judges_tunnel) {
            told(name);
        }
        self.tell_lacking(key, job);
        if job.is_repeat && !is_new && !is_other && change != Change::None {
            self.tell_repair(name, key, writer);
        }
        Ok(true)
    }

    fn tell_lacking(&self, key: &PodRef, job: &PodJob) {
        if job.lacks_services && !job.is_repeat {
            let text = "the lists of Services were waited for and are not complete: a pod's rules judge addresses of Services as any other until they are";
            self.parts.log.warn(text, &[("pod", key)]);
        }
    }
}

/// What is done in a pod's namespace, by a thread of its own.
struct PodLoad {
    netns: Arc<Netns>,
    host: NetnsId,
    /// Those that the pod is known by.
    addresses: Vec<IpAddr>,
    /// Those that it has in the cluster's network.
    told: Vec<IpAddr>,
    /// The interface that rules were loaded for last.
    last: Option<ClusterInterface>,
    job: PodJob,
    /// Whether it is heard already what others commit.
    is_heard: bool,
    backends: Arc<Backends>,
    backend: Backend,
}

impl PodLoad {
    /// What has changed, for which interface, and what hears of changes of others from now on, if that began here.
    fn run(self) -> Result<(Change, Option<ClusterInterface>, Option<KeptSockets>), PodPointFailure> {
        let Self { netns, host, addresses, told, last, mut job, is_heard, backends, backend } = self;
        netns::find::belongs_to(&netns, host, &addresses, &finder::addresses)?;
        // Without them the pod is looked at by turns.
        let open = |inside: &netns::Inside| KeptSockets::open_inside(inside, &netns).ok();
        netns.enter(|inside| {
            // What cannot be told apart is judged.
            let interface = kernel::pair::interface_with(inside, &told)?;
            let interface = interface.and_then(|name| InterfaceName::new(&name));
            let interface = interface.map(|name| ClusterInterface { name, addresses: told.into() });
            job.judge_only(interface.as_ref(), last.as_ref());
            // What comes while it is loaded is looked at again, but for what programs of ours commit.
            let by_programs = backend == Backend::Iptables;
            let kept = if is_heard || by_programs { None } else { open(inside) };
            let change = load::load(inside, backends.kernel(), backend, &job)?;
            Ok((change, interface, if !is_heard && by_programs { open(inside) } else { kept }))
        })?
    }
}
