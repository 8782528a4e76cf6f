//! What it costs to know that a pod is still as planned.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use capture::ambient::{MARK_MASK, NodeOptions, PodOptions, ZTUNNEL_MARK, plan_pod};
use conflicts::NetnsScope;
use kernel::iptables::{Iptables, Variant};
use kernel::nft::Nftables;
use kernel::observed::{ObservedSubject, PodProcesses};
use kernel::{Check, Choice, KeptSockets, Kernel};
use netns::Netns;
use ruleset::{Backend, Plan};
use testkit::{Families, Pod, TestNetns};

use crate::measures::Measure;
use crate::report::Report;

pub(crate) const ALL: &[Measure] = &[
    Measure { name: "verification: a pod with nf_tables", run: nf_tables },
    Measure { name: "verification: a pod with iptables-legacy", run: legacy },
    Measure { name: "verification: conflicts of a pod", run: conflicts },
];

/// A pod of ambient mode, with the sockets that are kept in its namespace.
struct Watched {
    netns: TestNetns,
    plan: Arc<Plan>,
    kept: KeptSockets,
}

fn watched(kernel: &Kernel<'_>, backend: Backend) -> Result<Watched> {
    let netns = TestNetns::new()?;
    let node = NodeOptions { ipv6: true, ..NodeOptions::default() };
    let plan = Arc::new(plan_pod(&node, &PodOptions::default(), backend));
    netns.enter(|inside| kernel.apply(inside, Choice::Only(backend), |_| Plan::clone(&plan)))??;
    let kept = KeptSockets::open(&Arc::new(Netns::open(netns.path())?))?;
    Ok(Watched { netns, plan, kept })
}

fn nf_tables(runs: usize, report: &mut Report) -> Result<()> {
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let Watched { netns, plan, mut kept } = watched(&kernel, Backend::Nftables)?;
    let check = cpu(runs, || {
        ensure!(kernel.check(&mut kept, &plan)? == Check::Equal, "a check found differences");
        Ok(())
    })?;
    report.time("verification: full check over kept sockets, CPU", check, Duration::from_micros(200));
    let inside = cpu(runs, || {
        let differences = netns.enter(|inside| kernel.observe(inside, &plan))??;
        ensure!(differences.is_empty(), "{differences:?}");
        Ok(())
    })?;
    report.time("verification: the same over new sockets inside, CPU", inside, None);
    let generation = cpu(runs, || unchanged(&mut kept))?;
    report.time("verification: whether anything was committed, CPU", generation, Duration::from_micros(5));
    Ok(())
}

fn legacy(runs: usize, report: &mut Report) -> Result<()> {
    let iptables = Iptables::forced(Variant::Legacy);
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let Watched { plan, mut kept, .. } = watched(&kernel, Backend::Iptables)?;
    ensure!(kernel.check(&mut kept, &plan)? == Check::Enter, "nobody has looked yet");
    kept.equal();
    let hash = cpu(runs, || unchanged(&mut kept))?;
    report.time("verification: whether legacy tables have changed, CPU", hash, Duration::from_micros(50));
    Ok(())
}

/// The pods of a full node.
const PODS: u32 = 250;

/// A look at a pod without rules of others, as the first one is: nothing is known of it.
fn conflicts(runs: usize, report: &mut Report) -> Result<()> {
    let iptables = Iptables::forced(Variant::Legacy);
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let node = NodeOptions { ipv6: true, ..NodeOptions::default() };
    for (backend, name) in [(Backend::Nftables, "nf_tables"), (Backend::Iptables, "iptables-legacy")] {
        let pod = Pod::new(Families::Dual)?;
        let plan = plan_pod(&node, &PodOptions::default(), backend);
        pod.enter(|inside| kernel.apply(inside, Choice::Only(backend), |_| plan.clone()))??;
        let processes = PodProcesses::default();
        let subject = ObservedSubject {
            scope: NetnsScope::Pod,
            plan: &plan,
            beside: &[],
            processes: &processes,
            proc_root: Path::new("/proc"),
            proxy_mark: Some((ZTUNNEL_MARK, MARK_MASK)),
            older: None,
            rules: None,
        };
        let observed = pod.enter(|inside| kernel.observed(inside, &subject))??;
        let reading = cpu(runs, || {
            pod.enter(|inside| kernel.observed(inside, &subject))??;
            Ok(())
        })?;
        report.time(&format!("conflicts: what a pod has is read, CPU, {name}"), reading, None);
        let examining = cpu(runs, || {
            let found = conflicts::examine(&observed, &plan).conflicts;
            ensure!(found.is_empty(), "{found:?}");
            Ok(())
        })?;
        report.time(&format!("conflicts: and examined, CPU, {name}"), examining, None);
        let all = (reading + examining) * PODS;
        let most = Duration::from_millis(250);
        report.time(&format!("conflicts: 250 pods, by what one costs, CPU, {name}"), all, most);
    }
    Ok(())
}

fn unchanged(kept: &mut KeptSockets) -> Result<()> {
    ensure!(kept.unchanged()?, "something has changed");
    Ok(())
}

/// The CPU time that one round takes of this process, kernel included, in the mean of many: threads that it starts count.
fn cpu(runs: usize, mut round: impl FnMut() -> Result<()>) -> Result<Duration> {
    let rounds = u32::try_from(runs.max(1) * 10)?;
    round()?;
    let before = used()?;
    for _ in 0..rounds {
        round()?;
    }
    Ok((used()? - before) / rounds)
}

#[allow(unsafe_code)]
fn used() -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer leads to a value that lives through the call.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    ensure!(read == 0, "clock_gettime: {}", std::io::Error::last_os_error());
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}
