//! The rules of many pods go at once: each has them back in time, and waits for no other.
//!
//! `DRIFT_PODS` makes the node larger.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use capture::ambient::plan_of_everything;
use kernel::RuleStore as _;
use kernel::nft::Nftables;
use kernel::watch::KeptSockets;
use ruleset::Backend;
use testkit::mesh::{Mesh, MeshPod};
use testkit::{Agent, eventually};

use crate::mesh_verify::{assert_all_are_counted, unverified, verified};

/// As many as are made in few seconds.
const PODS: usize = 100;
/// How many of them lose their rules.
const AT_ONCE: usize = 50;
/// Threads that make pods, and that take their rules away.
const WRITERS: usize = 4;
/// A change is seen within a tenth of a second, and put right within a second from then.
const LONGEST: Duration = Duration::from_millis(1100);
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// A pod whose rules are taken away.
struct Robbed<'a> {
    pod: &'a MeshPod,
    sockets: KeptSockets,
    /// When its rules were gone, and when the agent has written next.
    gone: Option<Instant>,
    back: Option<Instant>,
}

impl<'a> Robbed<'a> {
    fn new(pod: &'a MeshPod) -> Result<Self> {
        let netns = std::sync::Arc::new(netns::Netns::open(pod.netns.path())?);
        Ok(Self { pod, sockets: KeptSockets::open(&netns)?, gone: None, back: None })
    }

    /// Takes its rules away, all in one transaction.
    fn rob(&mut self) -> Result<()> {
        let plan = plan_of_everything(Backend::Nftables);
        self.pod.netns.enter(|inside| Nftables.cleanup(inside, &plan.layers))??;
        self.gone = Some(Instant::now());
        Ok(())
    }

    /// Looks whether the agent has written by now.
    fn look(&mut self) -> Result<bool> {
        let noticed = self.sockets.take_events()?;
        if self.back.is_none() && noticed.commits.iter().any(|commit| !commit.is_own()) {
            self.back = Some(Instant::now());
        }
        Ok(self.back.is_some())
    }
}

/// Pods that run, made by several threads.
fn make(mesh: &Mesh, count: usize) -> Vec<MeshPod> {
    let some = |first: usize| {
        let numbers = (first..count).step_by(WRITERS);
        numbers.map(|number| mesh.running("mesh", &format!("web-{number}"), &[]).unwrap()).collect()
    };
    std::thread::scope(|scope| {
        let makers: Vec<_> =
            (0..WRITERS).map(|first| scope.spawn(move || -> Vec<MeshPod> { some(first) })).collect();
        makers.into_iter().flat_map(|maker| maker.join().unwrap()).collect()
    })
}

pub(crate) fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[test]
fn fifty_pods_that_lose_their_rules_at_once_have_them_back_in_time() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env("VERIFY_INTERVAL", "60s")).unwrap();
    let count = number("DRIFT_PODS", PODS);
    let pods = make(&mesh, count);
    let all_are_verified = || {
        eventually("the pods are verified", PATIENCE, || {
            let now = verified(&agent)?;
            ensure!(now == count as f64, "{now} of {count} are: {}", unverified(&agent)?);
            Ok(())
        })
        .unwrap();
    };
    all_are_verified();
    // Others have the processors, too: what is in time once is, and what never is has a reason of its own.
    let mut rounds = pods.chunks_exact(AT_ONCE).enumerate();
    let in_time = rounds.any(|(number, some)| {
        let took = rob_at_once(some, &agent);
        let (median, last) = (took[AT_ONCE / 2], took[AT_ONCE - 1]);
        println!(
            "{AT_ONCE} of {count} pods at once had their rules back after {median:?} (p50), {last:?} (p99)"
        );
        all_are_verified();
        let repaired = agent.metric("istio_cni_drift_total{action=\"repaired\",what=\"rules\"}").unwrap();
        assert_eq!(repaired, (AT_ONCE * (number + 1)) as f64);
        some.iter().for_each(|pod| assert!(pod.is_redirected().unwrap()));
        last <= LONGEST
    });
    assert!(in_time);
}

/// How long each of the pods was without its rules, the shortest first.
fn rob_at_once(pods: &[MeshPod], agent: &Agent) -> Vec<Duration> {
    let mut robbed: Vec<Robbed<'_>> = pods.iter().map(|pod| Robbed::new(pod).unwrap()).collect();
    let end = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        for some in robbed.chunks_mut(AT_ONCE.div_ceil(WRITERS)) {
            scope.spawn(move || {
                some.iter_mut().for_each(|pod| pod.rob().unwrap());
                while Instant::now() < end {
                    let looks: Vec<bool> = some.iter_mut().map(|pod| pod.look().unwrap()).collect();
                    if looks.into_iter().all(|is_back| is_back) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
    });
    assert_all_are_counted(&agent.metrics().unwrap());
    let mut took: Vec<Duration> = robbed.iter().filter_map(|pod| Some(pod.back? - pod.gone?)).collect();
    took.sort_unstable();
    assert_eq!(took.len(), AT_ONCE, "{}", agent.log().text());
    took
}
