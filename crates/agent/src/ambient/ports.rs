//! What the executor asks of the outside. Each port is one thing; [`super::Ambient`] is all of them, and a test brings its own.

use std::net::IpAddr;

use applied::sandbox::Sandbox;
use facts::PodRef;
use intent::RedirectionMark;
use netns::Netns;

use super::failure::AmbientFailure;
use super::members::{GivenNetns, Member};
use serve::Descriptor;

/// Where a pod's namespace comes from.
#[derive(Debug, Clone)]
pub(crate) enum NetnsSource {
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
    /// It is looked for, because rules of ours are in it.
    Leaving,
}

/// A namespace that was found.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) netns: Netns,
    pub(super) given: GivenNetns,
    /// What the runtime calls the pod, where that was said.
    pub(super) called: Option<String>,
}

/// What the loading of rules came to.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The namespace was told not to pick up connections that it has not seen begin, and is left so; also if the rules could not be loaded.
    pub(super) strict: bool,
    /// Whether that changed something.
    pub(super) changed: Result<bool, AmbientFailure>,
}

/// Whether the next act comes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Now,
    /// The pod is worked on again when it is time.
    Later,
}

/// Finds pods' namespaces.
pub(super) trait NetnsPort {
    /// The pod's namespace, never another pod's and never the node's; nothing where the pod has never had one of ours.
    ///
    /// # Errors
    /// It is not found, or cannot be opened.
    fn locate(
        &self,
        member: &Member,
        ips: &[IpAddr],
        place: &NetnsSource,
    ) -> impl Future<Output = Result<Option<Located>, AmbientFailure>> + Send;
}

/// Rules in a pod's namespace.
pub(super) trait PodRules {
    /// Loads those that redirect; `spare`: what the pod has open goes on past them.
    fn load(&self, member: &Member, spare: bool) -> impl Future<Output = Loaded> + Send;

    /// Puts right what differs from the plan; nothing where nothing differs.
    fn repair(&self, member: &Member) -> impl Future<Output = Option<Loaded>> + Send;

    /// Leaves only those that let open connections go on; whether there were any.
    fn drain(&self, member: &Member) -> impl Future<Output = Result<bool, AmbientFailure>> + Send;

    /// Removes everything of ours.
    fn remove(&self, member: &Member) -> impl Future<Output = Result<(), AmbientFailure>> + Send;

    /// Lets the namespace pick up connections again that it has not seen begin.
    fn restore_tracking(&self, member: &Member) -> impl Future<Output = Result<(), AmbientFailure>> + Send;
}

/// What goes through ztunnel in a pod's namespace. Nobody's way fails by it.
pub(super) trait Connections {
    /// Whether the wait for it is over.
    fn wait(&self, member: &Member) -> Next;

    /// Ends it, for both sides.
    fn end(&self, member: &Member) -> impl Future<Output = ()> + Send;

    /// Lets connection tracking forget what it knows of it.
    fn forget_entries(&self, member: &Member) -> impl Future<Output = ()> + Send;
}

/// The node's ztunnels.
pub(super) trait NodeZtunnels {
    /// Has one take the pod.
    fn tell(&self, member: &Member) -> impl Future<Output = Result<(), AmbientFailure>> + Send;

    /// Has all let go of it.
    fn release(&self, uid: &str) -> impl Future<Output = Result<(), AmbientFailure>> + Send;
}

/// The node's sets of addresses.
pub(super) trait NodeSets {
    fn add_probes(&self, ips: &[IpAddr], uid: &str) -> Result<(), AmbientFailure>;

    /// Takes back what is still this pod's.
    fn remove_probes(&self, ips: &[IpAddr], uid: &str) -> Result<(), AmbientFailure>;
}

/// The pod's annotation.
pub(super) trait AnnotationPort {
    /// Lets it have this value. A pod that is gone has none.
    fn annotate(
        &self,
        pod: &PodRef,
        mark: Option<RedirectionMark>,
    ) -> impl Future<Output = Result<(), AmbientFailure>> + Send;
}

/// What the next agent is to know. Without it a pod is worked on all the same.
pub(super) trait Disk {
    fn keep(&self, member: &Member) -> impl Future<Output = ()> + Send;

    fn forget(&self, member: &Member) -> impl Future<Output = ()> + Send;
}

/// All of them.
pub(super) trait AmbientPorts:
    NetnsPort + PodRules + Connections + NodeZtunnels + NodeSets + AnnotationPort + Disk + Sync
{
}

impl<T> AmbientPorts for T where
    T: NetnsPort + PodRules + Connections + NodeZtunnels + NodeSets + AnnotationPort + Disk + Sync
{
}
