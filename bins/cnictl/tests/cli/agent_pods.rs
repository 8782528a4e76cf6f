//! The pods of a node as its agent tells of them, and without it.

use serde_json::{Value, json};

use crate::machine::{CALICO, Machine, PATIENCE};
use crate::schema::document;

fn items(machine: &Machine, line: &str) -> Value {
    document(&machine.on_node(&format!("{line} -o json")))
}

#[test]
fn the_agent_says_what_it_knows_and_when_it_is_gone_the_same_is_looked_up() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    machine.files.write("manifests/shop_web.yaml", crate::WEB);
    machine.files.write("manifests/shop_plain.yaml", crate::PLAIN);
    let missed =
        crate::PLAIN.replace("name: plain,", "name: missed, labels: {sidecar.istio.io/inject: 'true'},");
    machine.files.write("manifests/shop_missed.yaml", &missed);
    let agent = machine.agent(&[]);
    let all_known = || items(&machine, "pods")["items"].as_array().unwrap().len() == 3;
    testkit::until("the agent knows three pods", PATIENCE, all_known, || agent.log().text()).unwrap();
    let document = items(&machine, "pods");
    assert_eq!(document["evidence"]["by"], "agent", "{document:#}");
    let decided =
        document["items"].as_array().unwrap().iter().map(|pod| json!([pod["name"], pod["decided_by"]]));
    let wanted = [["missed", "not-injected"], ["plain", "no-proxy"], ["web", "sidecar"]];
    assert_eq!(decided.collect::<Vec<_>>(), wanted.map(|pair| json!(pair)));
    // It has no network namespace, so nothing is known of it, and nothing is called captured.
    let run = machine.on_node("verify web");
    assert_eq!(run.exit, 4, "{run:?}");
    assert!(run.stdout.contains("evidence: the agent, version "), "{run:?}");
    let status = machine.run("status").ok();
    assert!(status.contains("\nCaptured        0 of 1 pod; 1 "), "{status}");
    machine.on_node("restore shop/plain --yes").fails(3, &["pod shop/plain should not be captured: "]);
    machine.on_node("restore shop/nobody --yes").fails(3, &["no pod is known on this node: shop/nobody"]);
    machine.on_node("restore shop/web --dry-run").fails(1, &["is not as planned; nothing was changed"]);
    drop(agent);
    let document = items(&machine, "pods");
    assert_eq!(
        (&document["evidence"]["by"], document["items"].as_array().unwrap().len()),
        (&json!("cnictl"), 3)
    );
    machine.on_node("restore shop/web --yes").fails(1, &["only the agent restores pods", "no agent answers"]);
}
