//! NetworkPolicies in a pod's own namespace: what a policy, a label and their end do to real packets, and what happens to them while the API server or
//! the agent is away.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Agent, Families, Launch, PATIENCE, Pod, PodObject, at_once, until};

use crate::mesh_render::cnictl;

const PORT: u16 = 8080;
const UID: &str = "00000001-0000-4000-8000-00000000beef";
/// A pod of another node.
const FRIEND: &str = "10.78.0.5";
const STRANGER: &str = "10.78.0.6";

/// A node with one pod, and all other addresses behind its interface.
pub(crate) struct Setup {
    pub(crate) mesh: Mesh,
    pub(crate) pod: Pod,
    _listener: Listeners,
    nftables: bool,
}

impl Setup {
    pub(crate) fn new(nftables: bool) -> Self {
        let (mesh, pod) = (Mesh::new().unwrap(), Pod::new(Families::V4).unwrap());
        mesh.node.api.set_namespace("shop", &[]);
        let cgroup = format!("/kubepods/burstable/pod{UID}/{:064x}", 1);
        mesh.process(2001, pod.own().path(), &cgroup, 2101).unwrap();
        let web = PodObject::named("web").in_namespace("shop").uid(UID).label("app", "web");
        mesh.node.api.set_pod(web.on_node("n1").container("app").running(&[Pod::V4]));
        let listener = Listeners::start(pod.own(), [Listener::tcp(PORT)]).unwrap();
        let setup = Self { mesh, pod, _listener: listener, nftables };
        setup.set_friend(&[]);
        setup
    }

    pub(crate) fn agent(&self) -> Agent {
        self.launch().ready().unwrap()
    }

    pub(crate) fn launch(&self) -> Launch<'_> {
        let agent = self.mesh.node.agent().env("HOST_ROOT", &self.mesh.root().to_string_lossy());
        let agent = agent.env("CLEANUP_ON_EXIT", "never").env("POLICY_ENFORCEMENT", "on");
        let native = if self.nftables { "true" } else { "false" };
        agent.env("POLICY_POINT", "pod").env("NATIVE_NFTABLES", native)
    }

    pub(crate) fn set_friend(&self, labels: &[(&str, &str)]) {
        let friend =
            PodObject::named("friend").in_namespace("shop").uid("friend").on_node("n2").labels(labels);
        let address: IpAddr = FRIEND.parse().unwrap();
        self.mesh.node.api.set_pod(friend.container("app").running(&[address]));
    }

    pub(crate) fn set_policy(&self, spec: &Value) {
        let policy = json!({"metadata": {"namespace": "shop", "name": "web", "uid": "p"}, "spec": spec});
        self.mesh.node.api.set_object(Resource::NetworkPolicies, policy);
    }

    /// Whether the pod answers an address.
    pub(crate) fn answers(&self, from: &str) -> bool {
        let source = SocketAddr::new(from.parse().unwrap(), 0);
        let flow = Flow::from(self.pod.peer()).source(source).patience(Duration::from_millis(300));
        flow.tcp(SocketAddr::new(Pod::V4, PORT)).unwrap().port() == Some(PORT)
    }

    pub(crate) fn wait(&self, what: &str, friend: bool, stranger: bool) {
        let seen = || [self.answers(FRIEND), self.answers(STRANGER)];
        until(
            what,
            PATIENCE,
            || seen() == [friend, stranger],
            || format!("{:?}; rules:\n{}", seen(), self.rules()),
        )
        .unwrap();
    }

    /// All rules of the pod's namespace, with the numbers that new ones would have other than before.
    pub(crate) fn rules(&self) -> String {
        let own = self.pod.own();
        let nft = own.run(Command::new("nft").args(["-a", "list", "ruleset"])).unwrap();
        nft + &own.run(&mut Command::new("iptables-save")).unwrap()
            + &own.run(Command::new("ipset").arg("save")).unwrap()
    }
}

fn follow(nftables: bool) {
    let setup = Setup::new(nftables);
    let agent = setup.agent();
    setup.wait("nothing is isolated", true, true);
    let open = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": [{"port": PORT}]}]});
    setup.set_policy(&open);
    setup.wait("a policy isolates the pod", false, false);
    setup.set_friend(&[("role", "friend")]);
    setup.wait("a label opens it", true, false);
    // Without the API server, and without an agent, the kernel has what it had; the next agent changes nothing.
    let rules = setup.rules();
    setup.mesh.node.api.stop();
    agent.log().wait_for(&["the API server is away"], PATIENCE).unwrap();
    setup.wait("the API server is away", true, false);
    agent.kill().unwrap();
    setup.mesh.node.api.restart().unwrap();
    let agent = setup.agent();
    setup.wait("another agent", true, false);
    assert_eq!(strip(&setup.rules()), strip(&rules), "the next agent writes what is there already");
    setup.set_policy(&json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    setup.wait("another policy", true, false);
    setup.mesh.node.api.delete_object(Resource::NetworkPolicies, "shop", "web");
    setup.wait("no policy isolates the pod any more", true, true);
    until("nothing of ours is left", PATIENCE, || !setup.rules().contains("istio"), || setup.rules())
        .unwrap();
    drop(agent);
}

/// A Service's address as the pod asks for it: behind the pod's interface the service proxy leads it to a friend.
const SERVICE: &str = "10.96.0.10:80";

impl Setup {
    fn set_endpoints(&self, addresses: &[&str]) {
        let endpoints: Vec<Value> =
            addresses.iter().map(|one| json!({"addresses": [one], "conditions": {"ready": true}})).collect();
        let slice = json!({"metadata": {"namespace": "shop", "name": "db-1", "uid": "s1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "protocol": "TCP", "port": PORT}]});
        self.mesh.node.api.set_object(Resource::EndpointSlices, slice);
    }

    /// Whether the pod reaches the Service, a friend, somebody else, and an address of no Service.
    fn reached(&self) -> [bool; 4] {
        let friend = format!("{FRIEND}:{PORT}");
        let others = [SERVICE, &friend, &format!("{STRANGER}:{PORT}"), "10.96.0.11:80"];
        others.map(|to| {
            let flow = Flow::from(self.pod.own()).patience(Duration::from_millis(300));
            flow.tcp(to.parse().unwrap()).unwrap().port().is_some()
        })
    }
}

fn follow_services(nftables: bool) {
    let setup = Setup::new(nftables);
    let api = &setup.mesh.node.api;
    let proxy = format!(
        "table ip proxy {{ chain pre {{ type nat hook prerouting priority dstnat; ip daddr 10.96.0.10 tcp dport 80 dnat to {FRIEND}:{PORT}; }}; }}"
    );
    setup.pod.peer().nft(&proxy).unwrap();
    let _others = Listeners::start(setup.pod.peer(), [Listener::tcp(PORT), Listener::tcp(80)]).unwrap();
    setup.set_friend(&[("role", "friend")]);
    let service = json!({"metadata": {"namespace": "shop", "name": "db", "uid": "s"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80, "targetPort": PORT}]}});
    api.set_object(Resource::Services, service);
    setup.set_endpoints(&[FRIEND]);
    let agent = setup.agent();
    let wait = |what: &str, expected: [bool; 4]| {
        until(
            what,
            PATIENCE,
            || setup.reached() == expected,
            || format!("{:?}; rules:\n{}\n{}", setup.reached(), setup.rules(), agent.log().text()),
        )
        .unwrap();
    };
    wait("nothing is isolated", [true; 4]);
    setup.set_policy(&json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": [{"port": PORT}]}]}));
    wait("a Service of friends", [true, true, false, false]);
    setup.set_endpoints(&[FRIEND, STRANGER]);
    wait("a Service of friends and others", [false, true, false, false]);
    let asked = "policy explain --from shop/web --service shop/db --port 80";
    let (exit, text, error) = cnictl(&setup.mesh, asked).unwrap();
    let mixed = "mixed: Service shop/db port 80: 1 endpoints allowed, 1 denied\n";
    assert!(exit == Some(1) && text.starts_with(mixed), "{exit:?} {text} {error}");
    until(
        "that is told",
        PATIENCE,
        || api.events().iter().any(|one| one["reason"] == "NetworkPolicyMixedService"),
        || agent.log().text(),
    )
    .unwrap();
    setup.set_endpoints(&[FRIEND]);
    wait("of friends again", [true, true, false, false]);
    setup.set_friend(&[]);
    wait("nobody is a friend any more", [false; 4]);
    let told = api.events().iter().filter(|one| one["reason"] == "NetworkPolicyMixedService").count();
    assert_eq!(told, 1, "once for the Service and the class");
}

#[test]
fn services_are_reached_whose_endpoints_are_all_allowed_in_nf_tables() {
    follow_services(true);
}

#[test]
fn services_are_reached_whose_endpoints_are_all_allowed_in_iptables() {
    follow_services(false);
}

/// Without the counters.
pub(crate) fn strip(rules: &str) -> Vec<String> {
    let words = |line: &str| {
        line.split_whitespace().filter(|word| !word.starts_with('[')).collect::<Vec<_>>().join(" ")
    };
    let lines = rules.lines().filter(|line| !line.starts_with('#')).map(words);
    lines
        .map(|line| match line.split_once("counter packets ") {
            Some((head, tail)) => {
                format!("{head}{}", tail.split_whitespace().skip(3).collect::<Vec<_>>().join(" "))
            }
            None => line,
        })
        .collect()
}

#[test]
fn a_pod_is_isolated_opened_and_let_go_by_policies_in_nf_tables() {
    follow(true);
}

#[test]
fn a_pod_is_isolated_opened_and_let_go_by_policies_in_iptables() {
    follow(false);
}

/// The kernel tells of what others commit in the pod.
#[test]
fn rules_that_somebody_removes_in_a_pod_are_back_within_a_second() {
    let setup = Setup::new(true);
    setup.set_policy(&json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}));
    let agent = setup.agent();
    setup.wait("a policy isolates the pod", false, false);
    let nft = |line: &str| setup.pod.own().run(Command::new("nft").args(line.split(' '))).unwrap();
    let rules = setup.rules();
    let mut took = Vec::new();
    for line in [
        "delete table inet istio-policy-mangle",
        "flush chain inet istio-policy-mangle prerouting",
        "flush ruleset",
    ] {
        nft(line);
        let began = Instant::now();
        let is_back = || {
            let listed = setup.rules();
            let lines = |text: &str| text.lines().filter(|line| !line.contains("counter")).count();
            lines(&listed) == lines(&rules)
        };
        until(line, PATIENCE, is_back, || format!("{}\n{}", setup.rules(), agent.log().text())).unwrap();
        took.push(began.elapsed());
    }
    println!("rules were back after {took:?}");
    assert!(took.iter().all(|took| *took < Duration::from_secs(1)), "{took:?}\n{}", agent.log().text());
    setup.wait("the policy is in force", false, false);
    agent.log().wait_for(&["the rules of a pod's policies differed", "nft"], PATIENCE).unwrap();
    let events = setup.mesh.node.api.events();
    let told: Vec<_> = events.iter().filter(|one| one["reason"] == "NetworkPolicyRulesRepaired").collect();
    assert!(told.len() == 1 && told[0]["involvedObject"]["name"] == "web", "{events:?}");
}

/// A pod whose policies need more than may be in its namespace is closed, whether they do so from the beginning or later, and opened when they need less.
fn stay_small(nftables: bool) {
    let setup = Setup::new(nftables);
    setup.set_friend(&[("role", "friend")]);
    setup.set_policy(&json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]}));
    let launch = || setup.launch().env("POLICY_POD_POINT_MAX", "2").ready().unwrap();
    let agent = launch();
    setup.wait("one friend", true, false);
    let more = |number: u32, role: &str| {
        let name = format!("more-{number}");
        let pod = PodObject::named(&name).in_namespace("shop").uid(&name).label("role", role).on_node("n2");
        let address: IpAddr = format!("10.78.1.{number}").parse().unwrap();
        setup.mesh.node.api.set_pod(pod.container("app").running(&[address]));
    };
    (1..4).for_each(|number| more(number, "friend"));
    setup.wait("more friends than fit", false, false);
    let told =
        || setup.mesh.node.api.events().iter().filter(|one| one["reason"] == "NetworkPolicyTooLarge").count();
    until("it is told", PATIENCE, || told() == 1, || agent.log().text()).unwrap();
    assert_eq!(agent.metric("istio_cni_policy_guarded_pods").unwrap(), 1.0);
    agent.kill().unwrap();
    let agent = launch();
    setup.wait("the next agent", false, false);
    (2..4).for_each(|number| more(number, "none"));
    setup.wait("they fit again", true, false);
    setup.mesh.node.api.delete_object(Resource::NetworkPolicies, "shop", "web");
    setup.wait("no policy isolates the pod any more", true, true);
    until("nothing of ours is left", PATIENCE, || !setup.rules().contains("istio"), || setup.rules())
        .unwrap();
    drop(agent);
}

#[test]
fn a_pod_whose_policies_need_too_much_is_closed() {
    at_once([true, false], stay_small);
}

/// Who can get past rules of its own is told, once, by what its processes can do.
#[test]
fn pods_that_can_get_past_their_rules_are_told() {
    let setup = Setup::new(true);
    let status = |capabilities: &str| {
        let given = format!("-all,{capabilities}");
        let args = ["--bounding-set", &given, "--inh-caps", "-all", "cat", "/proc/self/status"];
        let text = Command::new("setpriv").args(args).output().unwrap().stdout;
        let path = setup.mesh.root().join("proc/2001/status");
        std::fs::write(path, text).unwrap();
    };
    status("+chown,+net_raw");
    setup.set_policy(&json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}));
    let agent = setup.agent();
    setup.wait("a policy isolates the pod", false, false);
    let weak = |capability: &str| {
        // There is no series before the first look.
        let series = format!("istio_cni_policy_weak_pods{{capability=\"{capability}\"}}");
        agent.metrics().ok().and_then(|all| all.series.get(&series).copied()).unwrap_or(-1.0)
    };
    let told = || {
        let events = setup.mesh.node.api.events();
        let weak = events.iter().filter(|one| one["reason"] == "NetworkPolicyWeakPod");
        weak.map(|one| one["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    until("it was looked", PATIENCE, || weak("net_admin") == 0.0, || agent.log().text()).unwrap();
    assert_eq!((weak("net_raw"), told()), (0.0, Vec::new()), "nothing that it sends is judged");
    agent.kill().unwrap();
    status("+net_admin,+net_raw");
    setup.set_policy(
        &json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"]}),
    );
    let agent = setup.agent();
    let weak = |capability: &str| {
        agent.metric(&format!("istio_cni_policy_weak_pods{{capability=\"{capability}\"}}")).unwrap_or(-1.0)
    };
    until("it is told", PATIENCE, || told().len() == 1, || agent.log().text()).unwrap();
    let text = told().remove(0);
    assert!(text.contains("NET_ADMIN") && text.contains("NET_RAW"), "{text}");
    assert_eq!(["net_admin", "net_raw"].map(weak), [1.0, 1.0]);
}
