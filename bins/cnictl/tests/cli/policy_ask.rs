//! What is asked about policies: by manifests, by the agent, and by its snapshot when that is gone.

use serde_json::{Value, json};

use crate::Files;
use crate::machine::{CALICO, Machine, PATIENCE};
use crate::schema::document;

/// Three pods of a shop, and who may reach its database.
const SHOP: &str = include_str!("../../../../docs/examples/shop.yaml");

fn shop() -> Files {
    let files = Files::new();
    files.write("shop.yaml", SHOP);
    files
}

#[test]
fn a_denial_names_each_policy_and_what_of_its_rules_fails() {
    let files = shop();
    let ask = |rest: &str| files.run(&format!("policy explain --manifests @shop.yaml {rest}"));
    let text = ask("--from shop/api --to shop/db --port 5432").ok();
    assert_eq!(
        text,
        "allowed: shop/api -> shop/db TCP 5432 (10.0.1.6 -> 10.0.1.7)\n  \
         egress   allowed: no policy selects shop/api\n  \
         ingress  allowed: by shop/db ingress[0] from[0] ports[0]\nevidence: manifests\n"
    );
    let denied = ask("--from shop/web --to shop/db --port 5432").fails(1, &[]);
    assert_eq!(
        denied.stdout,
        "denied: shop/web -> shop/db TCP 5432 (10.0.1.5 -> 10.0.1.7)\n  \
         egress   allowed: no policy selects shop/web\n  \
         ingress  denied: no rule matches of the policies that select shop/db\n    \
         shop/closed: it has no rule\n    \
         shop/db ingress[0]: peer failed\n      peers: pods app=api of namespace shop\n      ports: TCP sql\n    \
         shop/db ingress[1]: port failed\n      peers: 10.0.1.0/24 except 10.0.1.6/32\n      ports: TCP 9000-9010\n    \
         nearest: shop/db ingress[1], by its port\nevidence: manifests\n"
    );
    // The other family, the own node, what has no ports, and the tunnel.
    let line = |rest: &str| ask(rest).stdout.lines().next().unwrap().to_owned();
    assert_eq!(
        line("--from shop/web --to shop/db --port 5432 -6"),
        "denied: shop/web -> shop/db TCP 5432 (fd00:1::5 -> fd00:1::7)"
    );
    assert_eq!(
        line("--from node --to shop/db --port 1"),
        "allowed: 192.0.2.1 -> shop/db TCP 1 (192.0.2.1 -> 10.0.1.7)"
    );
    let other = "--from shop/api --to shop/db --protocol other";
    assert_eq!(line(other), "denied: shop/api -> shop/db without ports (10.0.1.6 -> 10.0.1.7)");
    let tunnel = "--from shop/api --to shop/db --port 5432 --hbone";
    assert_eq!(line(tunnel), "allowed: shop/api -> shop/db TCP 5432, through HBONE (10.0.1.6 -> 10.0.1.7)");
}

#[test]
fn a_service_is_asked_for_endpoint_by_endpoint() {
    let files = shop();
    for to in ["--service shop/db", "--to 10.96.0.7"] {
        let line = format!("policy explain --manifests @shop.yaml --from shop/web {to} --port 5432 -o json");
        let mixed = document(&files.run(&line).fails(1, &[]));
        assert_eq!(mixed["verdict"], "mixed", "{mixed:#}");
        let verdicts = mixed["connections"].as_array().unwrap().iter();
        let verdicts: Vec<Value> =
            verdicts.map(|one| json!([one["destination"], one["route"], one["allowed"]])).collect();
        assert_eq!(
            verdicts,
            [json!(["10.0.1.7", "service", false]), json!(["203.0.113.7", "service", true])]
        );
        let missed = &mixed["connections"][0]["ingress"]["missed"];
        assert_eq!((&missed[0]["policy"], &missed[1]["failed"]), (&json!("shop/closed"), &json!("peer")));
    }
}

#[test]
fn what_is_not_there_and_what_does_not_fit_is_said() {
    let files = shop();
    let ask = |rest: &str| files.run(&format!("policy explain --manifests @shop.yaml {rest}"));
    ask("--from shop/none --to shop/db --port 1").fails(3, &["pod shop/none is not known"]);
    ask("--from shop/api --to fd00:1::7 --port 1").fails(3, &["no address of one family"]);
    ask("--from shop/api --service shop/db --port 1").fails(3, &["Service shop/db with port 1 (TCP)"]);
    ask("--from shop/api --to shop/db").fails(2, &["--port"]);
    ask("--from api --to shop/db --port 1").fails(2, &["NAMESPACE/POD"]);
    files.write("bad.yaml", "kind: NetworkPolicy\nmetadata: {name: x}\nspec: {ingress: 7}\n");
    let bad = files.run("policy explain --manifests @bad.yaml --from 10.0.0.1 --to 10.0.0.2 --port 1");
    bad.fails(1, &["bad.yaml", "a NetworkPolicy"]);
    let text = files.run("policy list --manifests @shop.yaml").ok();
    assert_eq!(
        text,
        "POD        DIRECTION   POINT   POLICIES\n\
         shop/api   ingress     -       shop/closed\n\
         shop/api   egress      -       (not isolated)\n\
         shop/db    ingress     -       shop/closed, shop/db\n\
         shop/db    egress      -       shop/out\n\
         shop/web   ingress     -       shop/closed\n\
         shop/web   egress      -       (not isolated)\n\
         evidence: manifests\n"
    );
    let list = document(&files.run("policy list shop/db --manifests @shop.yaml -o json"));
    assert_eq!(list["items"].as_array().unwrap().len(), 2, "{list:#}");
    files.run("policy list nobody --manifests @shop.yaml").fails(3, &["no such pod"]);
    let status = document(&files.run("policy status --manifests @shop.yaml -o json"));
    assert_eq!((&status["isolated_ingress"], &status["policies"]), (&json!(3), &json!(3)), "{status:#}");
}

#[test]
fn what_is_odd_is_found_and_what_a_change_would_do_is_told() {
    let files = shop();
    let lint = files.run("policy lint --manifests @shop.yaml -o json").fails(1, &["1 warning"]);
    let found = document(&lint);
    let found: Vec<Value> = found["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| json!([one["policy"], one["finding"], one["severity"]]))
        .collect();
    assert_eq!(
        found,
        [
            json!(["shop/db", "block-covers-pods", "note"]),
            json!(["shop/out", "egress-without-dns", "warning"])
        ]
    );
    let ok = files.run("policy lint --manifests @shop.yaml -n other");
    assert_eq!(ok.exit, 0, "{ok:?}");
    // One that lets everybody of the namespace in, and the end of one.
    files.write(
        "open.yaml",
        "kind: NetworkPolicy\nmetadata: {name: open, namespace: shop}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}, {port: 81}]}]}\n",
    );
    let diff = files.run("policy diff --manifests @shop.yaml -f @open.yaml").fails(1, &[]);
    assert_eq!(
        diff.stdout,
        "policy shop/open changes\nallowed: shop/api -> shop/web TCP 80-81\nevidence: manifests\n"
    );
    let diff = document(&files.run("policy diff --manifests @shop.yaml --delete shop/closed -o json"));
    assert_eq!(diff["policies"], json!(["shop/closed"]), "{diff:#}");
    assert!(diff["changes"].as_array().unwrap().iter().all(|one| one["allowed"] == true), "{diff:#}");
    let freed: Vec<&Value> = diff["isolation"].as_array().unwrap().iter().map(|one| &one["pod"]).collect();
    assert_eq!(freed, ["shop/api", "shop/web"]);
    let dry = files.run("policy dry-run on shop/closed --manifests @shop.yaml").ok();
    let command =
        "kubectl annotate networkpolicy -n shop closed policy.cni.istio.io/mode=audit --overwrite\n";
    assert!(dry.starts_with(command) && dry.contains("pods whose isolation changes: 2;"), "{dry}");
    files
        .run("policy dry-run off shop/none --manifests @shop.yaml")
        .fails(3, &["policy shop/none is not known"]);
    let tried = "{name: closed, namespace: shop, annotations: {policy.cni.istio.io/mode: audit}}";
    files.write("tried.yaml", &SHOP.replace("{name: closed, namespace: shop}", tried));
    let ask = "policy explain --manifests @tried.yaml --from shop/db --to shop/api --port 8080";
    let text = files.run(ask).ok();
    assert!(text.contains("tried out: the isolation of shop/closed would deny it"), "{text}");
    let same = files.run("policy diff --manifests @shop.yaml -f @shop.yaml").ok();
    assert_eq!(same, "no verdict between pods changes\nevidence: manifests\n");
    files.run("policy diff --manifests @shop.yaml").fails(2, &["--filename"]);
}

/// The agent's answer, and that of the snapshot which it has left.
#[test]
fn the_agent_answers_and_when_it_is_gone_its_snapshot() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    // Pods of manifests that name no node are of this one.
    let shop = SHOP.replace("nodeName: n1, ", "");
    machine.files.write("manifests/shop.yaml", &shop);
    let state = machine.path("state");
    let on_node = |line: &str| machine.on_node(&format!("{line} --state-dir {}", state.display()));
    let agent = machine.policy_agent(&[]);
    let ask = |from: &str| on_node(&format!("policy explain --from shop/{from} --to shop/db --port 5432"));
    let is_in_force = || on_node("policy status").exit == 0;
    testkit::until("policies are in force", PATIENCE, is_in_force, || agent.log().text()).unwrap();
    let status = document(&on_node("policy status -o json"));
    assert_eq!((&status["standing"], &status["pods"]), (&json!("in-force"), &json!(3)), "{status:#}");
    assert_eq!(status["points"], json!({"node": 3}), "{status:#}");
    let placed = json!({"pod": "shop/api", "point": "node", "unseen": "", "text": ""});
    assert_eq!(status["placed"][0], placed, "{status:#}");
    let list = document(&on_node("policy list shop/db -o json"));
    let ends: Vec<Value> =
        [0, 1].map(|one| json!([list["items"][one]["guarded"], list["items"][one]["denied"]])).into();
    assert_eq!(ends, [json!([false, 0]), json!([false, 0])], "{list:#}");
    let denied = ask("web").fails(1, &[]);
    assert!(denied.stdout.contains("nearest: shop/db ingress[1]"), "{denied:?}");
    assert!(denied.stdout.contains("evidence: the agent, version "), "{denied:?}");
    assert_eq!(ask("api").exit, 0);
    let has_snapshot = || state.join("policies.snapshot").exists();
    testkit::until("the snapshot is written", PATIENCE, has_snapshot, || agent.log().text()).unwrap();
    drop(agent);
    assert_eq!(ask("api").exit, 0);
    let denied = ask("web").fails(1, &[]);
    assert!(denied.stdout.contains("evidence: the snapshot of policies, written "), "{denied:?}");
    on_node("policy status").fails(1, &["whether policies are in force is not known"]);
    // Of who is not on this node it is not known what policies say of them.
    let unsure = on_node("policy explain --from shop/web --to 203.0.113.9 --port 443").fails(4, &[]);
    assert!(unsure.stdout.contains("the policies of 203.0.113.9 are not known here"), "{unsure:?}");
}
