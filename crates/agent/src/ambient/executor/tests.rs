//! The executor against a node that refuses what must never be done, with a failure at each act.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::IpAddr;
use std::sync::Mutex;

use facts::PodRef;
use intent::{Have, Probes, RedirectionMark, Rules, Ztunnel};
use netns::Netns;
use serde_json::json;

use super::*;
use crate::ambient::members::GivenNetns;
use crate::ambient::ports::{
    AnnotationPort, Connections, Disk, Loaded, Located, NetnsPort, NodeSets, NodeZtunnels, PodRules,
};

const UID: &str = "u";
/// More acts than a way has.
const ACTS: usize = 12;

/// What the pod's namespace redirects.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum InKernel {
    #[default]
    Nothing,
    Capture,
    Drain,
}

#[derive(Debug, Default, Clone)]
struct World {
    rules: InKernel,
    sets: Vec<IpAddr>,
    ztunnel: bool,
    annotation: Option<RedirectionMark>,
    on_disk: bool,
    /// Its annotation was to go, whatever became of that.
    asked: bool,
    /// It has processes.
    runs: bool,
    calls: usize,
    /// Which call fails.
    fails: Option<usize>,
}

#[derive(Default)]
struct Node(Mutex<World>);

impl Node {
    /// The next call; whether it fails.
    fn call(&self, work: impl FnOnce(&mut World)) -> Result<(), AmbientFailure> {
        let mut world = self.0.lock().unwrap();
        let number = world.calls;
        world.calls += 1;
        if world.fails == Some(number) {
            return Err(AmbientFailure::NotReady);
        }
        work(&mut world);
        Ok(())
    }
}

impl NetnsPort for Node {
    async fn locate(
        &self,
        _: &Member,
        _: &[IpAddr],
        _: &NetnsSource,
    ) -> Result<Option<Located>, AmbientFailure> {
        self.call(|_| {})?;
        Ok(Some(Located { netns: Netns::current().unwrap(), given: GivenNetns::No, called: None }))
    }
}

impl PodRules for Node {
    async fn load(&self, member: &Member, spare: bool) -> Loaded {
        let changed = self.call(|world| {
            assert!(world.on_disk, "the next agent would not know of these rules");
            assert!(spare == world.runs, "only a pod that runs has something open");
            assert!(!world.runs || world.ztunnel, "a running pod's packets would go to nobody");
            let addresses = &member.have.addresses;
            assert!(
                !world.runs || addresses.iter().all(|ip| world.sets.contains(ip)),
                "its probes would fail"
            );
            world.rules = InKernel::Capture;
        });
        Loaded { strict: false, changed: changed.map(|()| true) }
    }

    async fn repair(&self, member: &Member) -> Option<Loaded> {
        Some(self.load(member, true).await)
    }

    async fn drain(&self, _: &Member) -> Result<bool, AmbientFailure> {
        self.call(|world| {
            assert!(world.asked, "it would say that it is in, and nobody would have asked for that to end");
            world.rules = InKernel::Drain;
        })?;
        Ok(true)
    }

    async fn remove(&self, _: &Member) -> Result<(), AmbientFailure> {
        self.call(|world| {
            assert!(!world.ztunnel, "what translates goes last");
            world.rules = InKernel::Nothing;
        })
    }

    async fn restore_tracking(&self, _: &Member) -> Result<(), AmbientFailure> {
        self.call(|_| {})
    }
}

impl Connections for Node {
    fn wait(&self, _: &Member) -> Next {
        Next::Now
    }

    async fn end(&self, _: &Member) {
        assert_eq!(self.0.lock().unwrap().rules, InKernel::Drain, "nobody would understand the end");
    }

    async fn forget_entries(&self, _: &Member) {
        assert_eq!(self.0.lock().unwrap().rules, InKernel::Nothing);
    }
}

impl NodeZtunnels for Node {
    async fn tell(&self, _: &Member) -> Result<(), AmbientFailure> {
        self.call(|world| {
            assert!(world.on_disk && (world.runs || world.rules == InKernel::Capture));
            world.ztunnel = true;
        })
    }

    async fn release(&self, _: &str) -> Result<(), AmbientFailure> {
        self.call(|world| {
            assert!(!world.runs || world.rules != InKernel::Capture, "its packets would go to nobody");
            world.ztunnel = false;
        })
    }
}

impl NodeSets for Node {
    fn add_probes(&self, ips: &[IpAddr], uid: &str) -> Result<(), AmbientFailure> {
        assert_eq!(uid, UID);
        self.call(|world| world.sets.extend(ips))
    }

    fn remove_probes(&self, ips: &[IpAddr], _: &str) -> Result<(), AmbientFailure> {
        self.call(|world| world.sets.retain(|ip| !ips.contains(ip)))
    }
}

impl AnnotationPort for Node {
    async fn annotate(&self, _: &PodRef, mark: Option<RedirectionMark>) -> Result<(), AmbientFailure> {
        self.0.lock().unwrap().asked |= mark.is_none();
        self.call(|world| {
            let complete = world.rules == InKernel::Capture && world.ztunnel && !world.sets.is_empty();
            assert!(mark != Some(RedirectionMark::Enabled) || complete, "it would say what is not true");
            world.annotation = mark;
        })
    }
}

impl Disk for Node {
    async fn keep(&self, member: &Member) {
        assert!(member.netns.is_some());
        self.0.lock().unwrap().on_disk = true;
    }

    async fn forget(&self, _: &Member) {
        let mut world = self.0.lock().unwrap();
        assert!(!world.ztunnel && world.sets.is_empty(), "nobody would take them away");
        world.on_disk = false;
    }
}

fn pod() -> Member {
    let pod = json!({"kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": UID}});
    Member::of(&serde_json::from_value(pod).unwrap()).0
}

fn entering(birth: Birth, addresses: &[&str]) -> Entering {
    Entering {
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        options: PodOptions::default(),
        node: Arc::new(NodeOptions {
            dns_capture: false,
            ipv6: true,
            probe_v4: capture::ambient::PROBE_V4,
            probe_v6: capture::ambient::PROBE_V6,
        }),
        birth,
        is_lost: true,
    }
}

/// What is known is what there is.
fn assert_true(have: &Have, world: &World) {
    let in_kernel = match have.rules {
        Rules::Capture(_) => Some(InKernel::Capture),
        Rules::Drain { .. } => Some(InKernel::Drain),
        Rules::None | Rules::Rest => Some(InKernel::Nothing),
        Rules::Maybe | Rules::Reload { .. } => None,
    };
    assert!(in_kernel.is_none_or(|rules| rules == world.rules), "{have:?} and {world:?}");
    match have.ztunnel {
        Ztunnel::Taken => assert!(world.ztunnel),
        Ztunnel::None => assert!(!world.ztunnel),
        _ => {}
    }
    match have.probes {
        Probes::In => assert!(have.addresses.iter().all(|ip| world.sets.contains(ip))),
        Probes::None => assert!(!have.addresses.iter().any(|ip| world.sets.contains(ip))),
        Probes::Maybe => {}
    }
    assert_eq!(have.mark, world.annotation, "{have:?} and {world:?}");
}

struct Test {
    node: Node,
    members: MeshMembers,
}

impl Test {
    fn new(runs: bool) -> Self {
        let test = Self { node: Node::default(), members: MeshMembers::default() };
        test.node.0.lock().unwrap().runs = runs;
        test
    }

    fn work(&self) -> Executor<'_, Node> {
        let member = self.members.get(UID).unwrap_or_else(pod);
        Executor::new(&self.node, &self.members, member, NetnsSource::Running)
    }

    /// Lets the call with this number fail from now on, or none.
    fn fail(&self, number: Option<usize>) {
        let mut world = self.node.0.lock().unwrap();
        (world.calls, world.fails) = (0, number);
    }

    fn world(&self) -> World {
        self.node.0.lock().unwrap().clone()
    }

    fn assert_true(&self) {
        // What is forgotten went with its sandbox.
        if let Some(member) = self.members.get(UID) {
            assert_true(&member.have, &self.world());
        }
    }

    async fn enter(&self, birth: Birth, addresses: &[&str]) -> Result<(), Stopped> {
        let mut work = self.work();
        work.enter(&entering(birth, addresses)).await?;
        work.change(|member| (member.state, member.announced) = (MemberState::Enrolled, false));
        work.carry_out(&Want::Held { addresses: Vec::new() }, false).await.map(drop)
    }

    async fn leave(&self, want: &Want, unsaid_too: bool) -> Result<ActProgress, Stopped> {
        let mut work = self.work();
        work.begin_leaving(false).await;
        work.carry_out(want, unsaid_too).await
    }

    fn assert_gone(&self) {
        let world = self.world();
        assert!(self.members.get(UID).is_none() && !world.on_disk);
        assert!(world.annotation.is_none() && !world.ztunnel && world.sets.is_empty(), "{world:?}");
    }
}

#[tokio::test]
async fn a_way_in_that_fails_at_any_act_ends_in_the_mesh_all_the_same() {
    for birth in [Birth::Running, Birth::New] {
        for number in 0..ACTS {
            let test = Test::new(birth == Birth::Running);
            test.fail(Some(number));
            let _ = test.enter(birth, &["10.0.0.1"]).await;
            test.assert_true();
            test.fail(None);
            test.enter(birth, &["10.0.0.1"]).await.unwrap();
            test.assert_true();
            assert_eq!(test.members.state(UID), Some(MemberState::Enrolled), "{birth:?} {number}");
            assert_eq!(test.world().annotation, Some(RedirectionMark::Enabled));
        }
    }
}

#[tokio::test]
async fn a_way_out_that_fails_at_any_act_ends_outside_all_the_same() {
    for (want, keeps_rules) in [(Want::Out, false), (Want::Ended, true)] {
        for number in 0..ACTS {
            for unsaid_too in [true, false] {
                let test = Test::new(true);
                test.enter(Birth::Running, &["10.0.0.1"]).await.unwrap();
                test.node.0.lock().unwrap().runs = want == Want::Out;
                test.fail(Some(number));
                let _ = test.leave(&want, unsaid_too).await;
                test.assert_true();
                test.fail(None);
                if test.members.get(UID).is_some() {
                    test.leave(&want, unsaid_too).await.unwrap();
                }
                test.assert_gone();
                assert_eq!(test.world().rules == InKernel::Capture, keeps_rules, "{want:?} {number}");
            }
        }
    }
}

/// An API server that is away does not keep rules in a pod, but the pod is known until its annotation is gone.
#[tokio::test]
async fn an_annotation_that_stays_keeps_nothing_but_itself() {
    let test = Test::new(true);
    test.enter(Birth::Running, &["10.0.0.1"]).await.unwrap();
    test.fail(Some(0));
    assert_eq!(test.leave(&Want::Out, true).await.unwrap_err().at, Act::Annotate(None));
    let world = test.world();
    assert!(world.rules == InKernel::Nothing && world.sets.is_empty() && !world.ztunnel && world.on_disk);
    test.fail(None);
    test.leave(&Want::Out, true).await.unwrap();
    assert_eq!(test.world().calls, 1, "only the annotation is asked for again");
    test.assert_gone();
}

#[tokio::test]
async fn a_way_in_that_failed_at_any_act_is_given_up_wholly() {
    for number in 0..ACTS {
        let test = Test::new(false);
        test.fail(Some(number));
        let entered = test.work().enter(&entering(Birth::New, &["10.0.0.1"])).await;
        test.fail(None);
        if test.members.get(UID).is_some() {
            assert!(test.work().give_up().await.is_empty(), "{entered:?}");
        }
        test.assert_gone();
        assert_eq!(test.world().rules, InKernel::Nothing, "{entered:?}");
    }
}

#[tokio::test]
async fn addresses_are_followed() {
    let test = Test::new(true);
    test.enter(Birth::Running, &["10.0.0.1"]).await.unwrap();
    for number in 0..3 {
        test.fail(Some(number));
        let addresses = vec![format!("10.0.1.{number}").parse().unwrap()];
        let _ = test.work().carry_out(&Want::Held { addresses: addresses.clone() }, false).await;
        test.assert_true();
        test.fail(None);
        test.work().carry_out(&Want::Held { addresses: addresses.clone() }, false).await.unwrap();
        assert_eq!(test.world().sets, addresses, "{number}");
    }
}
