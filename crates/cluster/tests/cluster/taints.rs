//! The taint of the node, while others change the node's taints as well.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::apiserver::{ApiServer, Fault, Resource};

use crate::agent::{NODE, Setup};

const KEY: &str = "cni.istio.io/not-ready";
/// Times that the taint is set or taken away while others come and go.
const ROUNDS: usize = 100;

fn taints(server: &ApiServer) -> Vec<Value> {
    let node = server.object(Resource::Nodes, "", NODE).unwrap();
    node["spec"]["taints"].as_array().cloned().unwrap_or_default()
}

/// Keys of taints that are not ours.
fn others(server: &ApiServer) -> BTreeSet<String> {
    let keys = taints(server).into_iter().map(|taint| taint["key"].as_str().unwrap().to_owned());
    keys.filter(|key| key != KEY).collect()
}

/// Adds a taint, or takes it away, as another controller does.
fn edit(server: &ApiServer, key: &str, add: bool) {
    server.change_object(Resource::Nodes, "", NODE, |node| {
        let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        taints.retain(|taint| taint["key"] != key);
        if add {
            taints.push(json!({"key": key, "value": "x", "effect": "NoExecute"}));
        }
        node["spec"] = json!({ "taints": taints });
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn taints_of_others_are_neither_lost_nor_put_back_by_changes_that_meet() {
    let setup = Setup::new();
    setup.server.set_object(Resource::Nodes, json!({"metadata": {"name": NODE}}));
    let (server, writer) = (&setup.server, setup.writer());
    let mut wanted = BTreeSet::new();
    for round in 0..ROUNDS {
        let edits = [0, 1, 2].map(|step| (format!("other/{}", (round + step) % 5), (round + step) % 2 == 0));
        std::thread::scope(|scope| {
            // Some of them come between the look at the node and the change.
            let others = scope.spawn(|| {
                for (key, add) in &edits {
                    edit(server, key, *add);
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
            let set = writer.set_taint(KEY, round % 2 == 0);
            let set = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(set));
            assert!(set.unwrap(), "round {round}");
            others.join().unwrap();
        });
        for (key, add) in edits {
            if add {
                wanted.insert(key)
            } else {
                wanted.remove(&key)
            };
        }
        assert_eq!(others(server), wanted, "round {round}");
        let ours: Vec<Value> = taints(server).into_iter().filter(|taint| taint["key"] == KEY).collect();
        let there = json!({"key": KEY, "effect": "NoSchedule"});
        assert_eq!(ours, if round % 2 == 0 { vec![there] } else { Vec::new() }, "round {round}");
    }
    let patches = server.patches();
    println!("{} patches for {ROUNDS} changes", patches.len());
    assert!(patches.len() > ROUNDS, "no change of others came in between");
    assert!(patches.iter().all(|patch| patch.body[0]["op"] == "test"), "each says what the list was");
}

#[tokio::test]
async fn a_taint_that_is_as_wanted_is_not_written() {
    let setup = Setup::new();
    setup.server.set_object(Resource::Nodes, json!({"metadata": {"name": NODE}, "spec": {}}));
    let writer = setup.writer();
    for (wanted, changed) in [(false, false), (true, true), (true, false), (false, true), (false, false)] {
        assert_eq!(writer.set_taint(KEY, wanted).await.unwrap(), changed, "{wanted}");
    }
    assert_eq!(setup.server.patches().len(), 2);
    assert!(setup.server.object(Resource::Nodes, "", NODE).unwrap()["spec"].get("taints").is_none());
    setup.server.fail_path("/nodes/", 1, Fault::status(403));
    assert_eq!(writer.set_taint(KEY, true).await.unwrap_err().status(), Some(403));
}
