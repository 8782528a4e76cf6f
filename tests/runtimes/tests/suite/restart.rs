//! CRI-O's own restart: it checks every pod, one by one, before it answers, and a pod whose CHECK fails has no address from then on.

use std::process::Command;
use std::time::{Duration, Instant};

use runtimes::{CriO, Kubelet, Machine, PodSpec, Runtime, Started};
use rustix::process::Signal;
use serde_json::json;
use testkit::Agent;
use testkit::apiserver::{Fault, Resource};
use testkit::mesh::MODE;
use testkit::ztunnel::Ztunnel;

/// Pods of which no record says what was applied to them, so that their facts are asked for.
const WITHOUT_RECORD: [&str; 3] = ["plain", "unenrolled", "gone"];
/// The longest that one of them holds the start up.
const LONGEST: Duration = Duration::from_millis(1200);
/// What all of them may take on a machine with other work.
const LONGEST_START: Duration = Duration::from_secs(20);

/// A node in ambient mode under CRI-O, with pods of every kind whose facts changed, or went, since their ADD.
struct Town<'a> {
    machine: &'a Machine,
    crio: CriO<'a>,
    agent: Option<Agent>,
    _ztunnel: Ztunnel,
    pods: Vec<Started>,
}

impl<'a> Town<'a> {
    fn new(machine: &'a Machine) -> Self {
        let agent = machine.ambient_agent().env("FACTS_TIMEOUT", "30s").ready().unwrap();
        let ztunnel = machine.mesh.ztunnel().unwrap();
        let crio = CriO::start(machine);
        let pods = [
            PodSpec::new("default", "plain"),
            PodSpec::sidecar("default", "sidecar"),
            PodSpec::new("mesh", "enrolled"),
            PodSpec::new("default", "unenrolled"),
            PodSpec::new("default", "gone"),
            PodSpec::sidecar("default", "gone-sidecar"),
            PodSpec::sidecar("default", "edited"),
        ];
        machine.schedule(&pods);
        let kubelet = Kubelet::new(machine, &crio);
        let started = kubelet.start_all(&pods, Duration::from_secs(20)).unwrap();
        let town = Self { machine, crio, agent: Some(agent), _ztunnel: ztunnel, pods: started };
        let captured = |name| town.crio.sandboxes().is_captured(&town.pod(name).sandbox).unwrap();
        assert!(captured("sidecar") && captured("gone-sidecar") && captured("edited") && !captured("plain"));
        assert!(town.crio.sandboxes().is_in_mesh(&town.pod("enrolled").sandbox).unwrap());
        town
    }

    fn pod(&self, name: &str) -> &Started {
        self.pods.iter().find(|started| started.pod.name == name).unwrap()
    }

    /// What changes in the cluster while the agent looks away.
    fn change_facts(&self) {
        let api = self.machine.api();
        api.delete_pod("default", "gone");
        api.delete_pod("default", "gone-sidecar");
        api.change_object(Resource::Pods, "default", "unenrolled", |object| {
            object["metadata"]["labels"][MODE] = json!("ambient");
        });
        api.change_object(Resource::Pods, "default", "edited", |object| {
            object["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] =
                json!("5432");
        });
    }

    /// Restarts CRI-O; the pods that have no address then.
    fn restart(&self, world: &str) -> Vec<&str> {
        self.crio.take_calls();
        let begin = Instant::now();
        self.crio.restart();
        let took = begin.elapsed();
        let calls = self.crio.take_calls();
        let checks = calls.iter().filter(|call| call.verb == "CHECK" && call.plugin == "istio-cni");
        let took_of = |name: &str| {
            let mut of_pod =
                checks.clone().filter(|call| call.attachment.container_id == self.pod(name).sandbox);
            of_pod.next().unwrap_or_else(|| panic!("{world}: no CHECK of {name}")).took
        };
        let times: Vec<Duration> = self.pods.iter().map(|started| took_of(&started.pod.name)).collect();
        println!("{world}: {} pods in {took:.1?}: {times:.1?}", times.len());
        // Other work may hold up any one of them.
        let soonest = WITHOUT_RECORD.map(took_of).into_iter().min().unwrap();
        assert!(soonest < LONGEST && took < LONGEST_START, "{world}: {soonest:?}, {took:?}");
        let lost = |started: &&Started| self.crio.sandboxes().addresses(&started.sandbox).is_empty();
        self.pods.iter().filter(lost).map(|started| started.pod.name.as_str()).collect()
    }
}

#[test]
fn no_pod_loses_its_address_for_what_cannot_be_known() {
    let machine = Machine::new("1.0.0").unwrap();
    let mut town = Town::new(&machine);
    assert_eq!(town.restart("nothing changed"), [""; 0]);
    town.agent.as_ref().unwrap().signal(Signal::STOP).unwrap();
    town.change_facts();
    assert_eq!(town.restart("the agent hangs"), [""; 0]);
    machine.api().set_fault(Some(Fault::Hang));
    assert_eq!(town.restart("the agent and the API server hang"), [""; 0]);
    town.agent = None;
    assert_eq!(town.restart("the agent is gone, the API server hangs"), [""; 0]);
    machine.api().stop();
    assert_eq!(town.restart("both are gone"), [""; 0]);
    std::fs::remove_file(machine.mesh.node.kubeconfig()).unwrap();
    assert_eq!(town.restart("no kubeconfig either"), [""; 0]);
    // What is proven is told in the same world.
    let sandboxes = town.crio.sandboxes();
    let nft = |name: &str, command: &[&str]| {
        sandboxes.inside(&town.pod(name).sandbox, Command::new("nft").args(command)).unwrap()
    };
    nft("sidecar", &["flush", "ruleset"]);
    nft("enrolled", &["flush", "chain", "inet", "istio-ambient-nat", "istio-output"]);
    assert_eq!(town.restart("rules are flushed"), ["sidecar", "enrolled"]);
}

/// A process of the pod can hold the lock of its namespace and load rules of its own.
#[test]
fn a_pod_does_not_hold_up_the_others() {
    let machine = Machine::new("1.0.0").unwrap();
    let town = Town::new(&machine);
    town.agent.as_ref().unwrap().signal(Signal::STOP).unwrap();
    machine.api().set_fault(Some(Fault::Hang));
    let sandboxes = town.crio.sandboxes();
    let locks: Vec<_> = town.pods.iter().map(|started| sandboxes.lock(&started.sandbox).unwrap()).collect();
    let rule = |n: u32| format!("ip daddr 10.{}.{}.1 tcp dport {} accept\n", n / 250, n % 250, n + 1);
    let rules: String = (0..4000).map(rule).collect();
    let file = machine.mesh.node.dir().join("rules");
    let text = format!("table ip other {{ chain o {{ type nat hook output priority 0;\n{rules}}}; }}");
    std::fs::write(&file, text).unwrap();
    for started in &town.pods {
        sandboxes.inside(&started.sandbox, Command::new("nft").arg("-f").arg(&file)).unwrap();
    }
    assert_eq!(town.restart("locks are held, rules are planted"), [""; 0]);
    drop(locks);
}
