//! A pod that keeps the kernel busy in its own network namespace: no other pod waits for it, and it is named until that is over.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::{Agent, PATIENCE, Process, eventually};

use crate::mesh::wait_in;

/// Elements whose deletion takes the kernel well over ten seconds, all of them under the mutex of the namespace's nf_tables: it looks at each for
/// each.
const ELEMENTS: u32 = 6500;
const OVERDUE: &str = "istio_cni_ambient_verifications_overdue";

/// Lets a program of the pod's hold the mutex, just when the agent has something to put right there.
fn hold(pod: &MeshPod, elements: u32) -> Result<Process> {
    let element = |n: u32| {
        let address = format!("10.{}.{}.{}", n >> 14 & 255, n >> 6 & 255, (n & 63) * 4 + 1);
        format!("{address} . {}-{}", 1000 + n % 1000, 3000 + n % 7)
    };
    let all = (0..elements).map(element).collect::<Vec<_>>();
    let mut add = "table inet x { set s { type ipv4_addr . inet_service; flags interval; }; }\n".to_owned();
    let mut delete = String::new();
    for part in all.chunks(2000) {
        let part = part.join(", ");
        writeln!(add, "add element inet x s {{ {part} }}")?;
        writeln!(delete, "delete element inet x s {{ {part} }}")?;
    }
    pod.netns.nft(&add)?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(&file, delete)?;
    let mut program = Command::new("sh");
    program.args(["-c", "nft delete table inet istio-ambient-nat; exec nft -f \"$0\""]).arg(file.path());
    let process = pod.netns.spawn(&mut program)?;
    // Until it has read the file.
    std::thread::sleep(Duration::from_millis(1500));
    Ok(process)
}

fn is_overdue(agent: &Agent) -> Result<()> {
    let overdue = agent.metric(OVERDUE)?;
    ensure!(overdue == 1.0, "{overdue}: {}", agent.log().text());
    let text = agent.health("/readyz?verbose")?.body;
    ensure!(text.contains("overdue pods: the verification of pods is overdue"), "{text}");
    ensure!(text.contains("default/busy") && !text.contains("default/good"), "{text}");
    // Everything else is in order.
    ensure!(agent.readyz()?.status == 200, "{text}");
    Ok(())
}

#[test]
fn a_pod_that_keeps_its_kernel_busy_delays_no_other() {
    let (mesh, agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "1s")).unwrap();
    let busy = mesh.running("default", "busy", &[(MODE, "ambient")]).unwrap();
    let good = mesh.running("default", "good", &[(MODE, "ambient")]).unwrap();
    for pod in [&busy, &good] {
        wait_in(&mesh, pod).unwrap();
    }
    let mut elements = ELEMENTS;
    // On a faster machine it takes more of them; where the agent was quicker than the program, another try.
    let seen = (0..4).any(|number| {
        let mut holder = hold(&busy, elements).unwrap();
        // The busy pod may be put right meanwhile, too.
        let restored =
            || agent.log().count(&["the rules of a pod differed and are put right", "pod=default/good"]);
        let before = restored();
        // At its end nft waits as long as the other program's transaction, as whoever closes a socket of this kind does: nobody waits for it here.
        let mut delete = Command::new("nft");
        let _delete =
            good.netns.spawn(delete.args(["delete", "table", "inet", "istio-ambient-nat"])).unwrap();
        let repaired = eventually("the other pod has its rules again", PATIENCE, || {
            ensure!(restored() > before, "it has not");
            Ok(())
        });
        repaired.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log().text()));
        let new = mesh.sandbox("default", &format!("new-{number}")).unwrap();
        mesh.node.api.set_pod(new.object(&[(MODE, "ambient")], false));
        let reply = mesh.announce(&new).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        let meanwhile = holder.ended().unwrap().is_none();
        let overdue = eventually("the pod is overdue", Duration::from_secs(60), || {
            if holder.ended()?.is_some() {
                return Ok(false);
            }
            is_overdue(&agent).map(|()| true)
        });
        let overdue = overdue.unwrap();
        eventually("the program's end", Duration::from_secs(120), || match holder.ended()? {
            Some(_) => Ok(()),
            None => bail!("it works still"),
        })
        .unwrap();
        assert!(good.is_redirected().unwrap() && new.is_redirected().unwrap());
        elements += elements / 2;
        meanwhile && overdue
    });
    assert!(seen, "the pod was never overdue: {}", agent.log().text());
    // It is put right as soon as that is over, and counts no longer.
    eventually("the busy pod is in again", PATIENCE, || {
        ensure!(agent.metric(OVERDUE)? == 0.0 && busy.is_redirected()?, "{}", agent.log().text());
        let text = agent.health("/readyz?verbose")?.body;
        ensure!(!text.contains("overdue"), "{text}");
        wait_in(&mesh, &busy)
    })
    .unwrap();
    agent.stop().unwrap();
}
