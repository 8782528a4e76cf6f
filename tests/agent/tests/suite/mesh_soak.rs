//! A node whose pods come and go while somebody changes their rules all the time. What the agent needs does not grow, and no pod stays unverified.
//!
//! `SOAK_SECONDS` and `SOAK_PODS` make it long and large: `make soak PART=verification`.

use std::collections::{BTreeMap, VecDeque};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::mesh::{Mesh, MeshPod};
use testkit::{Agent, eventually, http};

use crate::mesh_verify::{assert_all_are_counted, descriptors, processor_time, unverified, verified};

const SECONDS: u64 = 6;
const PODS: usize = 40;
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a pod may be unverified that nobody fights for.
const LONGEST: Duration = Duration::from_secs(2 + 5);
/// Between two scrapes.
const SCRAPE: Duration = Duration::from_millis(250);
/// Pods whose rules are changed in a second. One pod in a second is replaced, the oldest, so that few pods are changed twenty times, which is as
/// often as they are repaired within an hour.
const DRIFTS: usize = 3;
/// What somebody does to a pod.
const CHANGES: [&str; 3] =
    ["delete table inet istio-ambient-nat", "flush ruleset", "add chain inet istio-ambient-nat somebody"];
const REPAIRED: &str = "istio_cni_drift_total{action=\"repaired\",what=\"rules\"}";
/// A pod that somebody fought for waits for its repair, at most for a minute.
const REST: Duration = Duration::from_secs(90);

/// What the agent has of the machine while nothing happens.
#[derive(Debug, Clone, Copy)]
struct Needs {
    /// `VmRSS` of proc(5), KiB.
    memory: u64,
    descriptors: usize,
    threads: usize,
}

/// A node under change.
struct Soak {
    mesh: Mesh,
    agent: Agent,
    pods: VecDeque<MeshPod>,
    /// Pods made so far.
    made: usize,
    /// Of xorshift.
    random: u64,
    /// Since when pods are unverified that nobody fights for, by uid.
    since: BTreeMap<String, Instant>,
    /// The longest of them, and scrapes.
    longest: Duration,
    scrapes: usize,
    /// How often one of them was seen.
    seen: usize,
    drifts: usize,
}

#[test]
fn pods_that_come_and_go_and_lose_rules_are_verified_and_the_agent_does_not_grow() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let time = Duration::from_secs(number("SOAK_SECONDS", SECONDS));
    let pods = usize::try_from(number("SOAK_PODS", PODS as u64)).unwrap();
    let interval = format!("{}s", INTERVAL.as_secs());
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env("VERIFY_INTERVAL", &interval)).unwrap();
    let mut soak = Soak::new(mesh, agent);
    (0..pods).for_each(|_| soak.add().unwrap());
    soak.rest().unwrap();
    soak.change_for(time / 3).unwrap();
    let before = soak.rest().unwrap();
    let (began, spent) = (Instant::now(), processor_time(&soak.agent));
    soak.change_for(time - time / 3).unwrap();
    let share = (processor_time(&soak.agent) - spent).as_secs_f64() / began.elapsed().as_secs_f64();
    let after = soak.rest().unwrap();
    let repaired = soak.agent.metric(REPAIRED).unwrap();
    println!(
        "{pods} pods, {} made, {} changes, {repaired} repairs, {} scrapes; unverified pods seen {} times, for at most {:?}; {:.1} % of a processor; \
         {before:?} became {after:?}",
        soak.made,
        soak.drifts,
        soak.scrapes,
        soak.seen,
        soak.longest,
        100.0 * share
    );
    assert!(repaired >= soak.drifts as f64 / 4.0, "{repaired} of {}", soak.drifts);
    // An allocator keeps what it once needed, and threads for blocking work end after a while.
    assert!(after.memory <= before.memory + before.memory / 5 + 4096, "{before:?} {after:?}");
    assert!(after.descriptors <= before.descriptors + 8, "{before:?} {after:?}");
    assert!(after.threads <= before.threads + 8, "{before:?} {after:?}");
}

// === impl Soak ===

impl Soak {
    fn new(mesh: Mesh, agent: Agent) -> Self {
        Self {
            mesh,
            agent,
            pods: VecDeque::new(),
            made: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            since: BTreeMap::new(),
            longest: Duration::ZERO,
            scrapes: 0,
            seen: 0,
            drifts: 0,
        }
    }

    fn add(&mut self) -> Result<()> {
        self.made += 1;
        self.pods.push_back(self.mesh.running("mesh", &format!("web-{}", self.made), &[])?);
        Ok(())
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound as u64) as usize
    }

    /// In each second one pod is replaced, and some lose rules.
    fn change_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let next = Instant::now() + Duration::from_secs(1);
            let oldest = self.pods.pop_front().context("there are no pods")?;
            self.mesh.delete(&oldest)?;
            drop(oldest);
            self.add()?;
            for _ in 0..DRIFTS {
                let (pod, change) = (self.below(self.pods.len()), self.below(CHANGES.len()));
                // One that has no rules at the moment has none to lose.
                let mut nft = Command::new("nft");
                self.pods[pod].netns.output(nft.arg(CHANGES[change]))?;
                self.drifts += 1;
            }
            while Instant::now() < next {
                self.scrape()?;
                std::thread::sleep(SCRAPE);
            }
        }
        Ok(())
    }

    /// Every pod that is expected is counted once, and none is unverified for long.
    fn scrape(&mut self) -> Result<()> {
        self.scrapes += 1;
        assert_all_are_counted(&self.agent.metrics()?);
        let reply = http::ask(&self.mesh.node.run_dir().join("agent.sock"), "GET", "/v1/pods", "")?;
        ensure!(reply.status == 200, "{reply:?}");
        let report: Value = serde_json::from_str(&reply.body)?;
        let pods = report["pods"].as_array().context("no pods")?;
        let wanted = pods.iter().filter(|pod| pod["wanted"] == "ambient");
        // The one that is deleted may be there still, and the one that is made not yet.
        ensure!(wanted.clone().count().abs_diff(self.pods.len()) <= 1, "{} of {report}", self.pods.len());
        let now = Instant::now();
        let mut since = BTreeMap::new();
        for pod in wanted {
            let (uid, state) = (pod["uid"].as_str().context("no uid")?, &pod["state"]);
            if state == "verified" || state == "contended" {
                continue;
            }
            self.seen += 1;
            let from = self.since.get(uid).copied().unwrap_or(now);
            self.longest = self.longest.max(now - from);
            ensure!(now - from <= LONGEST, "for {:?}: {pod}\n{}", now - from, self.agent.log().text());
            since.insert(uid.to_owned(), from);
        }
        self.since = since;
        Ok(())
    }

    /// Waits until every pod is verified; what the agent needs then.
    fn rest(&mut self) -> Result<Needs> {
        let pods = self.pods.len() as f64;
        eventually("the pods are verified", REST, || {
            let now = verified(&self.agent)?;
            ensure!(now == pods, "{now} of {pods} are: {}", unverified(&self.agent)?);
            Ok(())
        })?;
        self.since.clear();
        let proc = format!("/proc/{}", self.agent.pid());
        let status = std::fs::read_to_string(format!("{proc}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context(name.to_owned())?;
            Ok::<u64, anyhow::Error>(line.trim_end_matches("kB").trim().parse()?)
        };
        let threads = usize::try_from(field("Threads:")?)?;
        Ok(Needs { memory: field("VmRSS:")?, descriptors: descriptors(&self.agent), threads })
    }
}
