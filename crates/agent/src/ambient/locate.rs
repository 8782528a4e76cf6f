//! Where a pod's network namespace is: never another pod's, and never the node's.

use std::net::IpAddr;

use applied::sandbox::Sandbox;
use netns::Netns;
use netns::find::{MissingNetns, SearchRoots, WantedPod};

use super::Ambient;
use super::failure::{AmbientFailure, Cleanup, Unopened};
use super::members::{GivenNetns, Member};
use super::ports::{Located, NetnsPort, NetnsSource};
use crate::finder;
use crate::slots::Task;
use serve::Descriptor;

impl NetnsPort for Ambient {
    async fn locate(
        &self,
        member: &Member,
        ips: &[IpAddr],
        place: &NetnsSource,
    ) -> Result<Option<Located>, AmbientFailure> {
        match place {
            NetnsSource::Given { path, descriptor, called } => {
                let (netns, given) = self.open_given(member, path, descriptor.clone(), ips.to_vec()).await?;
                let is_new = member.announced || member.netns.as_deref() != Some(&netns);
                if is_new && self.pods.ztunnels.connected() == 0 {
                    // There is nothing to take back then, and the plugin asks again.
                    return Err(AmbientFailure::Ztunnel(zds::AddError::NoZtunnel));
                }
                Ok(Some(Located { netns, given, called: called.clone() }))
            }
            NetnsSource::Noted(sandbox) => self.locate_noted(member, sandbox).await.map(Some),
            NetnsSource::Running => {
                let ips = if ips.is_empty() { member.ips() } else { ips };
                let netns = self.find_running(member.wanted(ips, &self.config)).await?;
                Ok(Some(Located { netns, given: GivenNetns::No, called: None }))
            }
            NetnsSource::Leaving => match self.find_running(member.wanted(ips, &self.config)).await {
                Ok(netns) => Ok(Some(Located { netns, given: member.given, called: None })),
                Err(AmbientFailure::NotFound(MissingNetns::HostNetwork | MissingNetns::Sandbox(_))) => {
                    Ok(None)
                }
                Err(AmbientFailure::NotFound(missing)) => Err(Cleanup::NotFound(missing).into()),
                Err(failure) => Err(failure),
            },
        }
    }
}

impl Ambient {
    /// Where namespaces of running pods are looked for.
    pub(super) fn roots(&self) -> Result<SearchRoots, AmbientFailure> {
        Ok(SearchRoots { proc_root: self.config.proc_root(), host: self.host()?.id() })
    }

    /// The namespace of a pod that runs.
    pub(super) async fn find_running(&self, pod: WantedPod) -> Result<Netns, AmbientFailure> {
        Ok(self.node.finder.find(&self.roots()?, pod, || self.without_netns()).await?)
    }

    /// The namespace, and whether this agent sees it at its path too, so that it sees the path go with the sandbox.
    async fn open_given(
        &self,
        member: &Member,
        path: &str,
        descriptor: Option<Descriptor>,
        ips: Vec<IpAddr>,
    ) -> Result<(Netns, GivenNetns), AmbientFailure> {
        let host = self.host()?.id();
        let on_node = self.config.on_node(path);
        let opened = self.in_pod(&member.key, Task::Identify, move || -> Result<_, Unopened> {
            let seen = Netns::open(&on_node);
            let (netns, given) = match descriptor {
                Some(Descriptor(descriptor)) => {
                    let descriptor = descriptor.try_clone().map_err(Unopened::Descriptor)?;
                    let netns = Netns::from_descriptor(descriptor, on_node)?;
                    let is_seen = seen.is_ok_and(|seen| seen == netns);
                    (netns, if is_seen { GivenNetns::Path } else { GivenNetns::Descriptor })
                }
                None => (seen.map_err(Unopened::Unseen)?, GivenNetns::Path),
            };
            netns::find::belongs_to(&netns, host, &ips, &finder::addresses)?;
            Ok((netns, given))
        });
        opened.await?.map_err(|cause| AmbientFailure::Given { path: path.into(), cause })
    }

    /// The namespace that the plugin noted, if this agent sees it, else by a process of the pod.
    async fn locate_noted(&self, member: &Member, noted: &Sandbox) -> Result<Located, AmbientFailure> {
        let Sandbox { origin, path } = noted.clone();
        let called = Some(origin.uid);
        let (host, on_node) = (self.host()?.id(), self.config.on_node(&path.to_string_lossy()));
        let (id, ips) = (origin.netns, origin.addresses.clone());
        let opened = self.in_pod(&member.key, Task::Identify, move || {
            let netns = Netns::open(on_node).ok().filter(|netns| netns.id() == id)?;
            netns::find::belongs_to(&netns, host, &ips, &finder::addresses).ok()?;
            Some(netns)
        });
        if let Some(netns) = opened.await? {
            return Ok(Located { netns, given: GivenNetns::Path, called });
        }
        let mut of_name = member.clone();
        of_name.call(called.clone());
        let netns = self.find_running(of_name.wanted(&origin.addresses, &self.config)).await?;
        Ok(Located { netns, given: GivenNetns::No, called })
    }
}
