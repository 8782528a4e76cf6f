//! Network policies in the node's namespace.

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Families, Launch, PATIENCE, Pod, PodCall, PodObject, eventually, until};

const TABLE: &str = "istio-policy-mangle";

fn agent(mesh: &Mesh) -> Launch<'_> {
    mesh.agent().env("AMBIENT_ENABLED", "false")
}

fn shell(mesh: &Mesh, line: &str) -> String {
    mesh.host.run(Command::new("sh").args(["-c", line])).unwrap()
}

/// Waits until the addresses that lead to rules are these.
fn wait_isolated(mesh: &Mesh, addresses: &[String]) {
    let mut addresses = addresses.to_vec();
    addresses.sort();
    eventually("the pods are isolated", PATIENCE, || {
        let listed = shell(mesh, &format!("nft list map inet {TABLE} istio-np-ingress-v4 2>&1 || true"));
        let words: Vec<&str> = listed.split_whitespace().collect();
        let led = words.windows(3).filter(|three| three[1] == ":" && three[2] == "jump");
        let mut found: Vec<String> = led.map(|three| three[0].to_owned()).collect();
        found.sort();
        ensure!(found == addresses, "{listed}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn policies_are_in_force_put_right_adopted_and_taken_off() {
    let mesh = Mesh::new().unwrap();
    let policy = json!({"metadata": {"namespace": "default", "name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}});
    mesh.node.api.set_object(Resource::NetworkPolicies, policy);
    let web = mesh.running("default", "web", &[("app", "web")]).unwrap();
    let on = || agent(&mesh).env("POLICY_ENFORCEMENT", "on").ready().unwrap();
    let running = on();
    wait_isolated(&mesh, &[web.ip.to_string()]);
    let other = mesh.running("default", "other", &[("app", "web")]).unwrap();
    let both = [web.ip.to_string(), other.ip.to_string()];
    wait_isolated(&mesh, &both);
    // Another program removes everything.
    shell(&mesh, "nft add table inet theirs; nft flush ruleset");
    wait_isolated(&mesh, &both);
    shell(&mesh, &format!("nft flush chain inet {TABLE} postrouting-late"));
    eventually("the chain is as it was", PATIENCE, || {
        let listed = shell(&mesh, &format!("nft list chain inet {TABLE} postrouting-late"));
        ensure!(listed.contains("istio-np-ingress-v4"), "{listed}");
        Ok(())
    })
    .unwrap();
    // The next agent leaves what is right as it is: handles are the same.
    let before = shell(&mesh, &format!("nft -a list table inet {TABLE}"));
    running.stop().unwrap();
    assert_eq!(
        shell(&mesh, &format!("nft -a list table inet {TABLE}")),
        before,
        "an agent that ends leaves it"
    );
    let running = on();
    let third = mesh.running("default", "third", &[("app", "web")]).unwrap();
    wait_isolated(&mesh, &[both.as_slice(), &[third.ip.to_string()]].concat());
    let handles = |text: &str| -> Vec<String> {
        let named = text.lines().filter(|line| line.contains("# handle") && !line.contains("counter"));
        named.map(str::to_owned).collect()
    };
    assert_eq!(handles(&shell(&mesh, &format!("nft -a list table inet {TABLE}"))), handles(&before));
    running.stop().unwrap();
    let _off = agent(&mesh).ready().unwrap();
    eventually("the table is gone", PATIENCE, || {
        let tables = shell(&mesh, "nft list tables");
        ensure!(!tables.contains(TABLE), "{tables}");
        Ok(())
    })
    .unwrap();
}

/// Rules are there before an ADD ends, and gone before the address is; without an agent the pod is guarded instead, wherever the agent is killed.
#[test]
fn a_pod_that_starts_is_isolated_from_its_first_packet() {
    let mesh = Mesh::new().unwrap();
    let policy = json!({"metadata": {"namespace": "default", "name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}});
    mesh.node.api.set_object(Resource::NetworkPolicies, policy);
    // The pods' interfaces end in namespaces of their own.
    let on = || agent(&mesh).env("POLICY_ENFORCEMENT", "on").env("POLICY_POINT", "node").ready().unwrap();
    let mut running = Some(on());
    let snapshot = mesh.node.state_dir().join("policies.snapshot");
    eventually("what is known of policies is kept", PATIENCE, || {
        let text = std::fs::read_to_string(&snapshot)?;
        ensure!(text.contains("policy np default closed yes no"), "{text}");
        Ok(())
    })
    .unwrap();
    let guarded = |pod: &Pod| pod.nft_text().unwrap().contains("istio-np-guard-in");
    // The agent is there, is killed so many milliseconds after the ADD begins, is gone.
    for (round, killed) in [None, Some(0), Some(4), Some(9), Some(15), None].into_iter().enumerate() {
        let pod = Pod::new(Families::V4).unwrap();
        let there = Listeners::start(&pod, [Listener::tcp(8080)]).unwrap();
        let (name, uid) = (format!("web-{round}"), format!("{round:08x}-0000-4000-8000-00000000beef"));
        let object = PodObject::named(&name).uid(&uid).label("app", "web").on_node("n1").container("app");
        mesh.node.api.set_pod(object.clone());
        let call = PodCall::new(&mesh.node, &name, &uid, pod.path()).unwrap();
        std::thread::scope(|scope| {
            let add = scope.spawn(|| call.add().unwrap());
            if let Some(after) = killed {
                std::thread::sleep(Duration::from_millis(after));
                if let Some(agent) = running.take() {
                    agent.kill().unwrap();
                }
            }
            add.join().unwrap()
        });
        let is_led = shell(&mesh, &format!("nft list map inet {TABLE} istio-np-ingress-v4 2>&1 || true"))
            .contains("10.77.0.2");
        assert!(is_led || guarded(&pod), "round {round}: nothing isolates the pod");
        if guarded(&pod) {
            let to = (pod.ips()[0], 8080).into();
            let flow = Flow::from(pod.peer()).patience(Duration::from_millis(200)).tcp(to).unwrap();
            assert_eq!((flow.port(), there.take_records().len()), (None, 0), "round {round}");
        }
        if running.is_some() {
            assert!(is_led && !guarded(&pod), "round {round}: the agent has it in force");
            call.run("DEL").unwrap();
            wait_isolated(&mesh, &[]);
        } else if round < 4 {
            running = Some(on());
        } else if round == 5 {
            // The next agent has no other word of the address than the plugin's; the pod's first process comes later than that agent.
            assert!(guarded(&pod), "{is_led}");
            running = Some(on());
            wait_isolated(&mesh, &["10.77.0.2".to_owned()]);
            mesh.process(2001, pod.own().path(), &format!("/kubepods/burstable/pod{uid}/{round:064x}"), 2101)
                .unwrap();
            mesh.node.api.set_pod(object.running(pod.ips()));
            until("the guard goes", PATIENCE, || !guarded(&pod), || pod.nft_text().unwrap()).unwrap();
        }
    }
}
