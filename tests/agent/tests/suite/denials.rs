//! What network policies deny: who is told of it, and that nothing is missing in what is told.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Agent, Launch, PATIENCE, at_once, eventually, http};

use crate::mesh_render::cnictl;

const TABLE: &str = "istio-policy-mangle";
/// Of the policy in the tests.
const SERIES: &str =
    r#"istio_cni_policy_denied_total{direction="ingress",namespace="default",policy_set="default/closed"}"#;

/// Connects a pod with its node, which passes on what comes.
pub(crate) fn wire(mesh: &Mesh, pod: &MeshPod) {
    let (ip, name) = (pod.ip, format!("w-{}", pod.name));
    let host = |commands: &[String]| mesh.host.ip(commands).unwrap();
    mesh.host.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    host(&[
        format!("link add {name} type veth peer name eth0 netns {}", pod.netns.path().display()),
        format!("address add 169.254.1.1/32 dev {name}"),
        format!("link set {name} up"),
        format!("route add {ip} dev {name}"),
    ]);
    let own = ["link set eth0 up", "route add 169.254.1.1 dev eth0"];
    pod.netns.ip(&own).unwrap();
    pod.netns.ip(&[format!("route add default via 169.254.1.1 src {ip}")]).unwrap();
}

fn agent(mesh: &Mesh) -> Agent {
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false");
    // These pods have no end in the node, so that no test shows that it sees them.
    agent.env("POLICY_ENFORCEMENT", "on").env("POLICY_POINT", "node").ready().unwrap()
}

/// By nf_tables, or by a variant of iptables.
pub(crate) fn agent_by<'m>(mesh: &'m Mesh, backend: &str) -> Launch<'m> {
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on");
    match backend {
        "native" => agent.env("NATIVE_NFTABLES", "true"),
        variant => agent.env("NATIVE_NFTABLES", "false").env("FORCE_IPTABLES_BINARY", variant),
    }
}

pub(crate) fn set_policy(mesh: &Mesh, spec: &Value) {
    let policy = json!({"metadata": {"namespace": "default", "name": "closed"}, "spec": spec});
    mesh.node.api.set_object(Resource::NetworkPolicies, policy);
}

/// `web` may be reached by friends, at port 8080.
pub(crate) fn friends_only() -> Value {
    json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": [{"port": 8080}]}]})
}

pub(crate) fn records(mesh: &Mesh) -> anyhow::Result<Vec<Value>> {
    let reply = http::ask(&mesh.node.agent_socket(), "GET", "/v1/policy/denials", "")?;
    let report: Value = serde_json::from_str(&reply.body)?;
    report["records"].as_array().cloned().context(reply.body)
}

/// All that the rule has denied that ends the chain of the only class.
pub(crate) fn denied_by_rule(mesh: &Mesh) -> anyhow::Result<u64> {
    let listed = mesh.host.run(Command::new("nft").args(["list", "table", "inet", TABLE]))?;
    let rule = listed.lines().find(|line| line.contains("drop") && line.contains("counter"));
    let mut words = rule.context("no rule drops")?.split_whitespace().skip_while(|word| *word != "packets");
    Ok(words.nth(1).context("no counter")?.parse()?)
}

pub(crate) fn wait_isolated(mesh: &Mesh, pod: &MeshPod) {
    let lines = ["list", "map", "inet", TABLE, "istio-np-ingress-v4"];
    eventually("the pod is isolated", PATIENCE, || {
        let listed = mesh.host.run(Command::new("nft").args(lines))?;
        ensure!(listed.contains(&pod.ip.to_string()), "{listed}");
        Ok(())
    })
    .unwrap();
}

/// Ten thousand datagrams a second, for two seconds.
fn flood(from: &MeshPod, to: SocketAddr) {
    let send = || {
        let socket = UdpSocket::bind((from.ip, 0)).unwrap();
        for _ in 0..200 {
            let next = Instant::now() + Duration::from_millis(10);
            (0..100).for_each(|_| drop(socket.send_to(b"x", to)));
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    };
    from.netns.enter(|_| send()).unwrap();
}

/// Hundredths of a second of processor time that a process has had.
fn processor_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn what_policies_deny_is_told_by_name_and_counted_to_the_last_packet() {
    let mesh = Mesh::new().unwrap();
    set_policy(&mesh, &friends_only());
    let web = mesh.running("default", "web", &[("app", "web")]).unwrap();
    let client = mesh.running("default", "client", &[("app", "client")]).unwrap();
    wire(&mesh, &web);
    wire(&mesh, &client);
    let _listener = Listeners::start(&web.netns, [Listener::tcp(8080)]).unwrap();
    let agent = agent(&mesh);
    wait_isolated(&mesh, &web);
    let to = SocketAddr::new(web.ip, 8080);
    let flow = Flow::from(&client.netns).patience(Duration::from_millis(150)).tcp(to).unwrap();
    assert_eq!(flow.port(), None);
    eventually("the denial is told", PATIENCE, || {
        let records = records(&mesh)?;
        let record = records.first().context("there is no record")?;
        let found = [
            "/type",
            "/verdict",
            "/traffic_direction",
            "/source/pod_name",
            "/source/kind",
            "/destination/namespace",
            "/destination/pod_name",
            "/destination/port",
            "/protocol",
            "/tcp_flags",
            "/policy/selecting",
            "/policy/nearest_miss/missed",
            "/node",
            "/point",
            "/schema",
        ]
        .map(|path| record.pointer(path).cloned().unwrap_or_default());
        let wanted = json!([
            "policy_violation",
            "DROPPED",
            "INGRESS",
            "client",
            "pod",
            "default",
            "web",
            8080,
            "TCP",
            "SYN",
            ["default/closed"],
            "peer",
            "n1",
            "node",
            "istio-cni.denials/v1"
        ]);
        ensure!(json!(found) == wanted, "{record}");
        Ok(())
    })
    .unwrap();
    let line = ["policies deny a connection", "default/client", "default/web:8080", "default/closed"];
    agent.log().wait_for(&line, PATIENCE).unwrap();
    let (began, before) = (Instant::now(), processor_time(agent.pid()));
    flood(&client, SocketAddr::new(web.ip, 53));
    let used = processor_time(agent.pid()) - before;
    println!(
        "10,000 denied packets/s took {used} ms x 10 of the agent's processor time in {:?}",
        began.elapsed()
    );
    eventually("records and counters say the same", 2 * PATIENCE, || {
        let number = |record: &Value, key: &str| record[key].as_u64().unwrap_or_default();
        let records = records(&mesh)?;
        let told: u64 = records.iter().map(|one| number(one, "packets") + number(one, "suppressed")).sum();
        let (counted, metric) = (denied_by_rule(&mesh)?, agent.metric(SERIES)?);
        ensure!(counted >= 20_001, "the rule has counted {counted}");
        ensure!(
            told == counted && metric == counted as f64,
            "{told} are told, {metric} counted, of {counted}"
        );
        let logged: u64 = records.iter().map(|one| number(one, "packets")).sum();
        ensure!(logged < 1000, "{logged} packets were logged");
        Ok(())
    })
    .unwrap();
    let (exit, table, error) = cnictl(&mesh, "audit tail -n 1").unwrap();
    let row = table.lines().nth(1).unwrap_or_default();
    assert!(table.starts_with("TIME") && row.contains("default/closed"), "{exit:?} {table} {error}");
    let (exit, lines, error) = cnictl(&mesh, "audit tail -n 4096 -o json").unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap_or_default()).unwrap();
    assert_eq!((exit, &first["policy"]), (Some(0), &records(&mesh).unwrap()[0]["policy"]), "{error}");
    let (exit, list, error) = cnictl(&mesh, "policy list default/web -o json").unwrap();
    let list: Value = serde_json::from_str(&list).unwrap_or_else(|cause| panic!("{cause}: {exit:?} {error}"));
    let [ingress, egress] = [0, 1].map(|one| &list["items"][one]);
    assert_eq!(ingress["denied"], denied_by_rule(&mesh).unwrap(), "{list:#}");
    assert_eq!((&ingress["point"], &ingress["guarded"]), (&json!("node"), &json!(false)), "{list:#}");
    assert_eq!(egress["denied"], Value::Null, "no policy selects it: {list:#}");
    eventually("an Event is written", PATIENCE, || {
        let events = mesh.node.api.events();
        let of = |event: &&Value| event["reason"] == "NetworkPolicyDenied";
        let its: Vec<&Value> = events.iter().filter(of).collect();
        ensure!(
            its.len() == 1 && its[0]["series"]["count"] == 2,
            "one, and again for the other port: {its:?}"
        );
        let text = its[0]["message"].as_str().unwrap_or_default();
        let says = |part: &str| text.contains(part);
        ensure!(
            says("NetworkPolicies deny ") && says(" from default/client on port ") && says("default/closed"),
            "{text}"
        );
        Ok(())
    })
    .unwrap();
}

/// What the rules of `variant` of iptables have dropped.
fn dropped_by_iptables(mesh: &Mesh, variant: &str) -> anyhow::Result<u64> {
    let saved =
        mesh.host.run(Command::new(format!("iptables-{variant}-save")).args(["-c", "-t", "mangle"]))?;
    let drops = saved.lines().filter(|line| line.contains("-A ISTIO_NP_") && line.ends_with("-j DROP"));
    drops.map(|line| Ok(line[1..].split_once(':').context("no counter")?.0.parse::<u64>()?)).sum()
}

/// What records of a verdict tell: packets, and those that were not logged.
pub(crate) fn told(mesh: &Mesh, verdict: &str) -> anyhow::Result<(u64, u64)> {
    let records = records(mesh)?;
    let of = records.iter().filter(|record| record["verdict"] == verdict);
    let number = |record: &Value, key: &str| record[key].as_u64().unwrap_or_default();
    Ok(of.fold((0, 0), |(packets, suppressed), record| {
        (packets + number(record, "packets"), suppressed + number(record, "suppressed"))
    }))
}

/// Also of all that programs of iptables count there is a record.
#[test]
fn what_policies_would_deny_that_are_only_tried_out_passes_and_is_told_apart() {
    at_once(["native", "nft", "legacy"], |backend| {
        let mesh = Mesh::new().unwrap();
        let policy = |name: &str, mode: &str| {
            let annotations = json!({"policy.cni.istio.io/mode": mode});
            let metadata = json!({"namespace": "default", "name": name, "annotations": annotations});
            let spec = json!({"podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Ingress"]});
            mesh.node.api.set_object(Resource::NetworkPolicies, json!({"metadata": metadata, "spec": spec}));
        };
        policy("closed", "enforce");
        policy("tried", "audit");
        let pod = |name: &str| {
            let pod = mesh.running("default", name, &[("app", name)]).unwrap();
            wire(&mesh, &pod);
            pod
        };
        let [closed, tried, client] = ["closed", "tried", "client"].map(pod);
        let _listener = Listeners::start(&tried.netns, [Listener::tcp(8080)]).unwrap();
        let agent = agent_by(&mesh, backend).ready().unwrap();
        let reaches = |pod: &MeshPod| {
            let flow = Flow::from(&client.netns).patience(Duration::from_millis(150));
            flow.tcp(SocketAddr::new(pod.ip, 8080)).unwrap().port().is_some()
        };
        eventually("a denial is told", PATIENCE, || {
            ensure!(!reaches(&closed) && told(&mesh, "DROPPED")?.0 > 0, "{backend}");
            Ok(())
        })
        .unwrap();
        assert!(reaches(&tried), "{backend}: what is only tried out denies nothing");
        client
            .netns
            .enter(|_| {
                let socket = UdpSocket::bind((client.ip, 0)).unwrap();
                for pod in [&closed, &tried] {
                    (0..400).for_each(|_| drop(socket.send_to(b"x", (pod.ip, 53))));
                }
            })
            .unwrap();
        eventually("records and counters say the same", 2 * PATIENCE, || {
            for (verdict, metric, policy) in
                [("DROPPED", "denied", "closed"), ("AUDIT", "would_deny", "tried")]
            {
                let (logged, suppressed) = told(&mesh, verdict)?;
                let labels =
                    format!(r#"direction="ingress",namespace="default",policy_set="default/{policy}""#);
                let counted = agent.metric(&format!("istio_cni_policy_{metric}_total{{{labels}}}"))?;
                ensure!(
                    logged + suppressed > 300 && suppressed > 200 && counted == (logged + suppressed) as f64,
                    "{backend}: {logged} {verdict} and {suppressed} more are told, {counted} counted"
                );
            }
            let (logged, suppressed) = told(&mesh, "DROPPED")?;
            let dropped = match backend {
                "native" => denied_by_rule(&mesh)?,
                variant => dropped_by_iptables(&mesh, variant)?,
            };
            ensure!(logged + suppressed == dropped, "{backend}: {logged} and {suppressed} of {dropped}");
            Ok(())
        })
        .unwrap();
        tells_of_what_is_tried_out(&mesh, backend);
    });
}

/// Its records have their own type and names, and no Event is about them.
fn tells_of_what_is_tried_out(mesh: &Mesh, backend: &str) {
    let records = records(mesh).unwrap();
    let record = records.iter().find(|one| one["verdict"] == "AUDIT" && one["protocol"] == "TCP").unwrap();
    let paths = ["/type", "/allowed", "/policy/selecting", "/source/pod_name", "/destination/pod_name"];
    let found = paths.map(|path| record.pointer(path).cloned().unwrap_or_default());
    let wanted = json!(["policy_would_deny", true, ["default/tried"], "client", "tried"]);
    assert_eq!(json!(found), wanted, "{backend}: {record}");
    let (exit, table, error) = cnictl(mesh, "audit tail -n 4096").unwrap();
    let row = table.lines().find(|row| row.contains("default/tried:8080")).unwrap_or_default();
    assert!(row.contains("AUDIT") && row.contains("default/client"), "{exit:?} {table} {error}");
    let about = |name: &str| {
        let of = |event: &&Value| {
            event["reason"] == "NetworkPolicyDenied" && event["involvedObject"]["name"] == name
        };
        mesh.node.api.events().iter().filter(of).count()
    };
    eventually("an Event is written", PATIENCE, || {
        ensure!(about("closed") > 0, "{backend}");
        Ok(())
    })
    .unwrap();
    assert_eq!(about("tried"), 0, "{backend}: nothing was denied");
}

/// What another program flushes is back at once; entries that mean nothing, names that nobody has, and how long all of it takes is told.
#[test]
fn how_enforcing_goes_is_counted_and_told() {
    let mesh = Mesh::new().unwrap();
    let ports = json!([{"port": 8080}, {"port": "nobody-has-it"}, {"port": 9, "endPort": 3}]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": ports}]});
    set_policy(&mesh, &spec);
    let web = mesh.running("default", "web", &[("app", "web")]).unwrap();
    mesh.running("default", "client", &[("app", "client")]).unwrap();
    let agent = agent(&mesh);
    wait_isolated(&mesh, &web);
    let counted = |series: &str| agent.metric(&format!("istio_cni_policy_{series}")).unwrap();
    eventually("the pods are counted", PATIENCE, || {
        let found = [
            r#"pods{point="node",state="isolated"}"#,
            r#"pods{point="node",state="open"}"#,
            r#"elements{kind="peers"}"#,
            "invalid_entries",
            "unresolved_names",
        ]
        .map(counted);
        ensure!(found == [1.0, 1.0, 2.0, 1.0, 1.0], "{found:?}");
        Ok(())
    })
    .unwrap();
    let reason = |reason: &str| {
        let of = |event: &Value| event["reason"] == reason;
        mesh.node.api.events().into_iter().find(of).with_context(|| format!("no Event {reason}"))
    };
    let event = eventually("an Event about the policy", PATIENCE, || reason("NetworkPolicyInvalidEntries"));
    let event = event.unwrap();
    assert_eq!(event["involvedObject"]["name"], "closed", "{event}");
    assert!(event["message"].as_str().unwrap().starts_with("1 entry matches nothing"), "{event}");
    let began = Instant::now();
    mesh.host.nft("flush ruleset").unwrap();
    wait_isolated(&mesh, &web);
    println!("flushed rules were back within {:?}", began.elapsed());
    eventually("the repair is counted", PATIENCE, || {
        let repairs = counted(r#"repairs_total{reason="commit"}"#);
        ensure!(repairs == 1.0, "{repairs}");
        Ok(())
    })
    .unwrap();
    let event = eventually("an Event about the node", PATIENCE, || reason("NetworkPolicyRulesRepaired"));
    assert_eq!(event.unwrap()["involvedObject"]["kind"], "Node");
    let other = mesh.running("default", "other", &[("app", "web")]).unwrap();
    wait_isolated(&mesh, &other);
    assert!(counted("programming_seconds_count") >= 1.0);
}
