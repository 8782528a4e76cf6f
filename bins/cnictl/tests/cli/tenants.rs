//! What is asked about tenants: by manifests, by the agent, and by its snapshot when that is gone.

use std::path::Path;

use serde_json::{Value, json};

use crate::Files;
use crate::machine::{CALICO, Machine, PATIENCE};
use crate::schema::document;

/// Red and blue, a grant, and a namespace that both want.
const TENANTS: &str = include_str!("../../../../docs/examples/tenants.yaml");

fn files() -> Files {
    let files = Files::new();
    files.write("tenants.yaml", TENANTS);
    files
}

#[test]
fn tenants_are_listed_with_what_is_odd_of_them() {
    let files = files();
    let text = files.run("tenants list --manifests @tenants.yaml -o wide").ok();
    assert_eq!(
        text,
        "TENANT   NAMESPACES   PODS   ENFORCEMENT   CURRENT   FINDINGS   GENERATION   NAMES\n\
         blue     1            1      enforce       -         2          0            blue-api\n\
         red      2            2      enforce       -         0          0            red-db, red-web\n\n\
         blue: namespace red-db is tenant red's, which is older\n\
         blue: Service shared/registry is not there\nevidence: manifests\n"
    );
    assert_eq!(files.run("tenants list --manifests @tenants.yaml -o name -n red-web").ok(), "red\n");
    files.run("tenants list --manifests @tenants.yaml -n free").fails(3, &["no such tenant"]);
    let list = document(&files.run("tenants list --manifests @tenants.yaml -o json"));
    assert_eq!(
        list["items"][0]["namespaces"][1],
        json!({"name": "red-db", "state": "Refused", "tenant": "red"})
    );
    files.run("tenants list --manifests @tenants.yaml --lagging").fails(2, &["cannot be used with"]);
}

#[test]
fn the_rows_of_a_tenant_are_explained_and_a_verdict_names_one() {
    let files = files();
    let text = files.run("tenants explain red --manifests @tenants.yaml").ok();
    for line in [
        "tenant red, enforce\n  namespace red-db\n  namespace red-web\nto its pods:\n",
        "  1 denies     deniedIPRanges: 198.51.100.13/32; any port\n",
        "  3 hands-on   sameTenant: pods of tenant red; any port\n",
        "  4 hands-on   grant red-web/blue-may-come: pods of tenant blue; TCP 8443; own: pods of namespace red-web\n",
        "  7 denies     defaults.other: any peer; any port\nfrom its pods:\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let explained = document(&files.run("tenants explain blue --manifests @tenants.yaml -o json"));
    let rows = explained["egress"].as_array().unwrap();
    let last = json!({"row": "defaults.other", "result": "denies", "peers": "any peer", "ports": "any port"});
    assert_eq!(rows.last(), Some(&last));
    files.run("tenants explain green --manifests @tenants.yaml").fails(3, &["there are: blue, red"]);
    let ask = |rest: &str| files.run(&format!("policy explain --manifests @tenants.yaml {rest}"));
    let granted = ask("--from blue-api/api --to red-web/web --port 8443").ok();
    for line in [
        "egress   allowed: no rule decides, and the pod is not isolated\n    handed on: by tenant blue egress[4] \"to-red\" to[0]\n",
        "handed on: by tenant red ingress[3] \"grant red-web/blue-may-come\" from[0] ports[0]\n",
    ] {
        assert!(granted.contains(line), "{line} in {granted}");
    }
    let other_port = ask("--from blue-api/api --to red-web/web --port 80").fails(1, &[]);
    assert!(other_port.stdout.contains("denied: by tenant red ingress[4] \"otherPods\""), "{other_port:?}");
    let denied = document(&ask("--from red-web/web --to 198.51.100.13 --port 80 -o json"));
    let rules = &denied["connections"][0]["egress"]["rules"];
    assert_eq!(rules, &json!(["tenant red egress[0] \"deniedIPRanges\" to[0]"]));
}

#[test]
fn what_is_wrong_in_files_is_found_before_they_are_applied() {
    let files = files();
    let found = files.run("tenants lint --manifests @tenants.yaml -o json").fails(1, &["2 findings"]);
    let words = document(&found)["items"].clone();
    let words: Vec<&str> =
        words.as_array().unwrap().iter().filter_map(|one| one["finding"].as_str()).collect();
    assert_eq!(words, ["NamespaceConflict", "ServiceNotFound"]);
    let odd = json!({"kind": "List", "apiVersion": "v1", "items": [
        {"kind": "NetworkTenant", "metadata": {"name": "red"}, "spec": {"namespaces": ["nowhere"],
            "deniedIPRanges": ["192.0.2.0/24", "10.0.0.1/8", "10.96.0.0/16"]}},
        {"kind": "TenantGrant", "metadata": {"namespace": "free", "name": "g"},
            "spec": {"from": [{"tenant": "green"}], "to": [{"kind": "Pod"}]}},
        {"kind": "Node", "metadata": {"name": "n1"}, "status": {"addresses": [{"address": "192.0.2.1"}]}},
        {"kind": "Service", "metadata": {"namespace": "kube-system", "name": "kube-dns", "labels": {"k8s-app": "kube-dns"}},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 53, "protocol": "UDP"}]}}]});
    files.write("odd.json", &odd.to_string());
    let found = files.run("tenants lint --manifests @odd.json").fails(1, &["findings about tenants"]);
    for line in [
        "tenant red: spec.deniedIPRanges[1]: a range is its first address and a length",
        "tenant red: namespace nowhere is not there",
        "tenant red: deniedIPRanges deny Service kube-system/kube-dns (10.96.0.10)",
        "tenant red: deniedIPRanges have node n1 (192.0.2.1), from which probes come and pass all the same",
        "grant free/g: there is no tenant green",
        "grant free/g: namespace free has no tenant",
    ] {
        assert!(found.stdout.contains(line), "{line} in {}", found.stdout);
    }
    // A change of tenants is compared like one of policies.
    files.write("open.yaml", "{apiVersion: tenancy.istio-cni.io/v1alpha1, kind: NetworkTenant, metadata: {name: red}, spec: {namespaces: [red-web, red-db], defaults: {unassigned: Allow}}}");
    let diff = files.run("policy diff --manifests @tenants.yaml -f @open.yaml").fails(1, &[]);
    assert!(diff.stdout.contains("allowed: free/job -> red-db/db TCP\n"), "{diff:?}");
}

/// What an API server would take, or refuse, files take and refuse, too.
#[test]
fn samples_in_files_are_judged_as_by_the_definitions() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/facts/samples/tenants");
    let mut counts = [0; 2];
    for (number, folder) in ["valid", "invalid"].into_iter().enumerate() {
        let mut found = std::fs::read_dir(samples.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let files = Files::new();
        for path in &mut found {
            let line = format!("tenants lint -o json --manifests {}", path.display());
            let run = files.run(&line);
            let said: Value =
                serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{path:?}: {run:?}"));
            let items = said["items"].as_array().unwrap();
            let is_refused = items.iter().any(|item| item["finding"] == "NotUnderstood");
            assert_eq!(is_refused, folder == "invalid", "{}: {said:#}", path.display());
            counts[number] += 1;
        }
    }
    assert!(counts[0] >= 20 && counts[1] >= 40, "{counts:?}");
    println!("{} valid and {} invalid samples by files", counts[0], counts[1]);
}

/// A node with the pods and tenants of the example.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    // Pods of manifests that name no node are of this one.
    machine.files.write("manifests/tenants.yaml", &TENANTS.replace("nodeName: n1, ", ""));
    machine
}

/// The agent tells what is in force; when it is gone its snapshot tells what tenants come to.
#[test]
fn the_agent_tells_which_tenants_are_in_force() {
    let machine = machine();
    let ask = |line: &str| machine.on_node(&format!("{line} --state-dir @state"));
    let agent = machine.policy_agent(&["--tenants-enforcement=on"]);
    let is_current = || {
        let run = ask("tenants list");
        run.exit == 0 && run.stdout.matches("yes").count() == 2
    };
    testkit::until("tenants are in force", PATIENCE, is_current, || agent.log().text()).unwrap();
    let list = document(&ask("tenants list -o json"));
    let blue = &list["items"][0];
    assert_eq!((&blue["is_current"], &blue["in_force"]), (&json!(true), &json!(0)), "{list:#}");
    assert_eq!(blue["findings"][0]["finding"], "NamespaceConflict", "{list:#}");
    assert_eq!(ask("tenants list --lagging -o name").ok(), "");
    ask("tenants lint").fails(1, &["2 findings"]);
    assert!(ask("tenants explain red").ok().contains("grant red-web/blue-may-come"));
    let [node, pod] = crate::page::bodies(&machine.files, ["/", "/pod/red-web/web"]);
    for part in [
        "<a href=\"#tenants\">",
        "<td>red</td><td><i class=\"ok\"></i>enforced</td>",
        "is refused: tenant red has it",
    ] {
        assert!(node.contains(part), "{part} is not in {node}");
    }
    assert!(pod.contains("<dt>Tenant</dt><dd>red (enforce, in force)"), "{pod}");
    ask("policy diff -f @manifests/tenants.yaml")
        .fails(1, &["give all objects of the cluster with --manifests"]);
    let snapshot = machine.path("state/policies.snapshot");
    let is_kept = || std::fs::read_to_string(&snapshot).is_ok_and(|text| text.contains("policy tenant "));
    testkit::until("the snapshot is written", PATIENCE, is_kept, || agent.log().text()).unwrap();
    agent.kill().unwrap();
    let kept = ask("tenants list -o wide").ok();
    let said = ["evidence: the snapshot of policies, written ", "red-db, red-web"];
    assert!(said.iter().all(|said| kept.contains(said)), "{kept}");
}

#[test]
fn a_node_that_does_not_enforce_tenants_says_so() {
    let machine = machine();
    let agent = machine.policy_agent(&[]);
    let ask = |line: &str| machine.on_node(&format!("{line} --state-dir @state"));
    let is_said = || ask("tenants list").stderr.contains("TENANTS_ENFORCEMENT=off");
    testkit::until("it is said", PATIENCE, is_said, || agent.log().text()).unwrap();
    let list = ask("tenants list -o json").fails(3, &[]);
    assert_eq!(document(&list)["items"], json!([]));
    agent.stop().unwrap();
}
