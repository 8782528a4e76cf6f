//! The pods of a node and their state, without an agent: each by a look of this program.

use serde_json::{Value, json};

use crate::fleet::{Fleet, Prepared, ambient, injected, with_proxy};
use crate::row;
use crate::schema::assert_described;

/// Twenty pods, each in another state.
fn twenty() -> Fleet {
    let mut fleet = Fleet::new();
    let none = || json!({});
    let annotated = |key: &str, value: &str| {
        let mut metadata = injected();
        metadata["annotations"][key] = json!(value);
        metadata
    };
    let mut gvisor = with_proxy();
    gvisor["runtimeClassName"] = json!("gvisor");
    let mut init = with_proxy();
    init["initContainers"] = json!([{"name": "istio-init"}]);
    let gateway = json!({"containers": [{"name": "istio-proxy", "args": ["proxy", "router"]}]});
    let sidecar = "delete table inet istio-proxy-nat";
    let (nft, iptables) = ("--backend nftables", "--backend iptables");
    let prepared: &[(&str, Value, Value, &[&str], &str)] = &[
        ("captured", injected(), with_proxy(), &[nft], ""),
        ("captured-ipt", injected(), with_proxy(), &[iptables], ""),
        ("twice", injected(), with_proxy(), &[nft, iptables], ""),
        ("flushed", injected(), with_proxy(), &[], ""),
        ("drifted", injected(), with_proxy(), &[nft], sidecar),
        (
            "changed",
            annotated("traffic.sidecar.istio.io/excludeOutboundPorts", "9"),
            with_proxy(),
            &["@web.yaml"],
            "",
        ),
        ("cart", ambient(), none(), &[nft], ""),
        ("cart-flushed", ambient(), none(), &[nft], "flush ruleset"),
        ("gvisor", injected(), gvisor, &[nft], ""),
        ("left-over", none(), none(), &["@web.yaml"], ""),
        ("init", injected(), init, &["@web.yaml"], ""),
        ("none", annotated("sidecar.istio.io/interceptionMode", "NONE"), with_proxy(), &[], ""),
        ("missed", json!({"labels": {"sidecar.istio.io/inject": "true"}}), none(), &[], ""),
        ("gateway", injected(), gateway, &[], ""),
        ("bad", annotated("traffic.sidecar.istio.io/excludeOutboundPorts", "x"), with_proxy(), &[], ""),
        ("plain", none(), none(), &[], ""),
    ];
    for (name, metadata, spec, loaded, then) in prepared {
        fleet.pod(&Prepared { name, metadata: metadata.clone(), spec: spec.clone(), loaded, then });
    }
    // Pods without a namespace that could be found.
    fleet.facts("shop", "away", &injected(), &with_proxy());
    fleet.facts("kube-system", "dns", &none(), &none());
    fleet.facts("shop", "node", &none(), &json!({"hostNetwork": true}));
    fleet.facts("shop", "cart-away", &ambient(), &none());
    fleet
}

/// The text with times made equal.
fn steady(text: &str) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    for index in 1..words.len() {
        let is_age = words[index - 1].strip_suffix('s').is_some_and(|n| n.parse::<u32>().is_ok());
        if words[index].trim_end() == "ago" && is_age {
            words[index - 1] = "0s";
        }
    }
    words.join(" ")
}

#[test]
fn each_pod_is_told_with_its_decision_and_state_and_nothing_is_written() {
    let fleet = twenty();
    let listings = |fleet: &Fleet| -> Vec<Vec<Value>> {
        let of = |netns: &testkit::TestNetns| netns.nft_json(testkit::rules::Comments::Keep).unwrap();
        fleet.pods.iter().map(|(_, netns)| of(netns)).collect()
    };
    let before = listings(&fleet);
    let run = fleet.run("verify").fails(1, &["pod shop/cart-flushed is drifted: ", "(and 5 more)"]);
    assert_eq!(listings(&fleet), before);
    let (table, problems) = run.stdout.split_once("\n\n").unwrap();
    assert_eq!(steady(table), TABLE.trim());
    assert_problems(problems);
}

const TABLE: &str = "
NAMESPACE     NAME           WANTED                       STATE                       MODE       BACKEND    LAST VERIFIED   DRIFT   CONFLICTS   PROXY             EVIDENCE
kube-system   dns            none (excluded-namespace)    -                           -          -          -               -       -           -                 own look
shop          away           sidecar                      unverifiable (no-address)   REDIRECT   nftables   -               -       -           -                 own look
shop          bad            unknown (settings-invalid)   unverifiable                -          -          -               -       -           -                 own look
shop          captured       sidecar                      verified                    REDIRECT   nftables   0s ago          -       -           does not listen   own look
shop          captured-ipt   sidecar                      verified                    REDIRECT   iptables   0s ago          -       -           does not listen   own look
shop          cart           ambient                      unacknowledged              AMBIENT    nftables   0s ago          -       -           does not listen   own look
shop          cart-away      ambient                      unverifiable (no-address)   AMBIENT    nftables   -               -       -           -                 own look
shop          cart-flushed   ambient                      drifted                     AMBIENT    nftables   -               3       -           does not listen   own look
shop          changed        sidecar                      drifted                     REDIRECT   nftables   -               11      -           does not listen   own look
shop          drifted        sidecar                      drifted                     REDIRECT   nftables   -               1       -           does not listen   own look
shop          flushed        sidecar                      drifted                     REDIRECT   nftables   -               1       -           does not listen   own look
shop          gateway        none (not-a-sidecar)         -                           -          -          -               -       -           -                 own look
shop          gvisor         sidecar                      unverifiable (sandbox)      REDIRECT   nftables   -               -       -           -                 own look
shop          init           none (istio-init-present)    -                           -          -          -               -       -           -                 own look
shop          left-over      none (no-proxy)              -                           -          -          -               1       -           -                 own look
shop          missed         none (not-injected)          -                           -          -          -               -       -           -                 own look
shop          node           none (host-network)          -                           -          -          -               -       -           -                 own look
shop          none           none (interception-none)     -                           -          -          -               -       -           -                 own look
shop          plain          none (no-proxy)              -                           -          -          -               -       -           -                 own look
shop          twice          sidecar                      drifted                     REDIRECT   nftables   -               1       -           does not listen   own look
";

/// What is said below the table: the pod, and what its problem begins with.
const PROBLEMS: [(&str, &str); 14] = [
    ("away", "nothing in the run directory says which address it has"),
    ("bad", "what becomes of the pod cannot be decided: annotation value error"),
    ("captured", "its rules are as planned and nobody listens on 15001, 15006"),
    ("captured-ipt", "its rules are as planned and nobody listens on 15001, 15006"),
    ("cart", "the rules are as planned; whether ztunnel has the pod only the agent can tell"),
    ("cart-away", "nothing in the run directory says which address it has"),
    ("cart-flushed", "table istio-ambient-nat is missing (and 2 more)"),
    ("changed", "table istio-proxy-raw is not planned (and 10 more)"),
    ("drifted", "table istio-proxy-nat is missing"),
    ("flushed", "table istio-proxy-nat is missing"),
    ("gvisor", "it runs in a gVisor sandbox"),
    ("left-over", "it has rules of a sidecar, and should have none"),
    (
        "missed",
        "label sidecar.istio.io/inject=true asks for a proxy and it has none: it runs outside of the mesh",
    ),
    ("twice", "rules of ours are also in iptables"),
];

#[track_caller]
fn assert_problems(text: &str) {
    let mut lines: Vec<&str> = text.lines().collect();
    let evidence = lines.pop().unwrap();
    assert!(
        evidence.starts_with("evidence: looked at by cnictl itself: get the pods from the node agent at "),
        "{text}"
    );
    assert!(evidence.contains("no agent answers"), "{text}");
    assert_eq!(lines.len(), PROBLEMS.len(), "{text}");
    for (line, (pod, problem)) in lines.iter().zip(PROBLEMS) {
        assert!(line.starts_with(&format!("problem: shop/{pod}: {problem}")), "{line}");
    }
}

#[test]
fn pods_are_chosen_by_name_namespace_label_and_uid_and_the_exit_code_says_how_they_are() {
    let fleet = twenty();
    for (line, exit, names) in [
        ("verify captured captured-ipt", 0, "shop/captured shop/captured-ipt"),
        ("verify shop/captured", 0, "shop/captured"),
        ("verify -n kube-system", 3, "kube-system/dns"),
        ("verify -n elsewhere", 3, ""),
        ("verify plain node", 3, "shop/node shop/plain"),
        ("verify cart", 4, "shop/cart"),
        ("verify cart drifted", 1, "shop/cart shop/drifted"),
        ("verify gvisor", 1, "shop/gvisor"),
        ("verify away captured", 4, "shop/away shop/captured"),
        ("verify --uid uid-of-twice", 1, "shop/twice"),
        ("verify -A -l app=cart,app!=web", 1, "shop/cart shop/cart-away shop/cart-flushed"),
        ("pods -l sidecar.istio.io/inject", 0, "shop/missed"),
        ("pods nobody", 3, ""),
        ("verify -A -n shop", 2, ""),
        ("verify --sort-by colour", 2, ""),
    ] {
        let run = fleet.run(&format!("{line} -o name"));
        let found: Vec<&str> = run.stdout.lines().collect();
        assert_eq!((run.exit, found.join(" ").as_str()), (exit, names), "{line}: {run:?}");
    }
}

#[test]
fn lists_are_sorted_and_written_for_people_and_programs() {
    let fleet = twenty();
    let text = fleet.run("pods --no-headers --sort-by decided-by captured node plain").ok();
    let rows: Vec<Vec<&str>> = text.lines().take(3).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["shop", "node", "none", "host-network", "-", "-"]);
    assert_eq!(rows[1], ["shop", "plain", "none", "no-proxy", "-", "-"]);
    assert_eq!(rows[2], ["shop", "captured", "sidecar", "sidecar", "verified", "-"]);
    let wide = fleet.run("pods -o wide captured").ok();
    assert!(wide.contains("captured through its sidecar (REDIRECT, nftables, IPv4)"), "{wide}");
    let json: Value = serde_json::from_str(&fleet.run("verify -o json drifted").stdout).unwrap();
    assert_described(&json);
    assert_eq!(json["apiVersion"], "cnictl.istio-cni.io/v1");
    assert_eq!(json["kind"], "PodVerificationList");
    assert_eq!(json["items"][0]["state"], "drifted");
    assert_eq!(json["items"][0]["drift"], json!(["table istio-proxy-nat is missing"]));
    assert_eq!(json["items"][0]["evidence"]["by"], "cnictl");
    let inode = fleet.netns("drifted").netns().id().ino;
    assert_eq!(json["items"][0]["inode"], inode);
    let yaml = fleet.run("pods -o yaml captured").ok();
    assert!(yaml.starts_with("apiVersion: cnictl.istio-cni.io/v1\nkind: PodList\n"), "{yaml}");
}

#[test]
fn what_changes_is_printed_while_it_is_followed() {
    let mut fleet = Fleet::new();
    let loaded: &[&str] = &["--backend nftables"];
    let prepared = Prepared { name: "web", metadata: injected(), spec: with_proxy(), loaded, then: "" };
    fleet.pod(&prepared);
    let mut watch = fleet.command("verify -w -o json --timeout 30");
    let mut watch = testkit::Process::new(watch.stdout(std::process::Stdio::piped()).spawn().unwrap());
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.child().stdout.take().unwrap()));
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = next();
    assert_described(&first);
    assert_eq!((&first["change"], &first["kind"]), (&json!("added"), &json!("PodVerification")));
    assert_eq!((&first["name"], &first["state"]), (&json!("web"), &json!("verified")));
    fleet.netns("web").nft("flush ruleset").unwrap();
    let begin = std::time::Instant::now();
    let second = next();
    assert_eq!((&second["change"], &second["state"]), (&json!("changed"), &json!("drifted")));
    println!("told after {:?}", begin.elapsed());
    fleet.facts("shop", "late", &injected(), &with_proxy());
    let third = next();
    assert_eq!((&third["change"], &third["name"]), (&json!("added"), &json!("late")));
    std::fs::remove_file(fleet.run_dir().join("facts/shop_late.json")).unwrap();
    let last = next();
    assert_eq!((&last["change"], &last["name"]), (&json!("removed"), &json!("late")));
    // The time that is given is not too long.
    let run = fleet.run("pods -w --timeout 0.2");
    assert_eq!(run.exit, 124, "{run:?}");
    assert!(run.stdout.lines().count() == 2 && run.stdout.starts_with("NAMESPACE"), "{run:?}");
}

#[test]
fn what_differs_is_shown_as_unified_text() {
    let fleet = twenty();
    for (pod, exit, parts) in [
        ("captured", 0, &[][..]),
        ("captured-ipt", 0, &[]),
        ("cart", 0, &[]),
        (
            "drifted",
            1,
            &[
                "--- plan of pod shop/drifted (nftables)\n+++ kernel at ",
                "-table inet istio-proxy-nat {\n",
                "-  chain output (nat output, priority -100) {\n",
            ],
        ),
        ("changed", 1, &["+table inet istio-proxy-raw {\n", "\n-    "]),
        ("twice", 1, &["# rules of ours are also in iptables\n"]),
        ("plain", 3, &[]),
        ("nobody", 3, &[]),
        ("away", 1, &[]),
    ] {
        let run = fleet.run(&format!("diff shop/{pod}"));
        assert_eq!((run.exit, run.stdout.is_empty()), (exit, parts.is_empty()), "{pod}: {run:?}");
        for part in parts {
            assert!(run.stdout.contains(part), "{part:?} is not in {}", run.stdout);
        }
    }
    // A rule that somebody added, and one that is gone, in both backends.
    let nft = "add rule inet istio-proxy-nat output tcp dport 1 accept";
    fleet.netns("captured").nft(nft).unwrap();
    let text = fleet
        .run("diff captured -n shop")
        .fails(1, &["pod shop/captured is not as planned: 1 difference"])
        .stdout;
    let added: Vec<&str> =
        text.lines().filter(|line| line.starts_with('+') && !line.starts_with("+++")).collect();
    assert!(added.len() == 1 && added[0].contains("accept"), "{text}");
    let rule = "*nat\n-D ISTIO_OUTPUT 1\n-I OUTPUT 1 -p udp -j ISTIO_OUTPUT\nCOMMIT\n";
    fleet
        .netns("captured-ipt")
        .iptables_restore(testkit::rules::Variant::Nft, testkit::rules::Family::V4, rule)
        .unwrap();
    let text = fleet.run("diff shop/captured-ipt").fails(1, &["2 differences"]).stdout;
    let of = |sign: char| text.lines().skip(2).filter(|line| line.starts_with(sign)).count();
    assert_eq!((of('-'), of('+')), (1, 1), "{text}");
}

#[test]
fn a_verdict_is_shown_with_what_it_rests_on() {
    let fleet = twenty();
    let text = fleet.run("verify captured --evidence").ok();
    let netns = fleet.netns("captured");
    for part in [
        format!("{} by the runtime", netns.path().display()),
        "10.9.0.1".to_owned(),
        "NOT LISTENING   15001, 15006".to_owned(),
        "sidecar.istio.io/status={}".to_owned(),
        "inet istio-proxy-nat output (nat output, priority -100)".to_owned(),
    ] {
        assert!(text.contains(&part), "{part:?} is not in {text}");
    }
    let generation = row(&text, "GENERATION").parse::<u32>().unwrap();
    assert!(generation > 0);
    netns.nft("add table ip other").unwrap();
    let json: Value = serde_json::from_str(&fleet.run("verify captured --evidence -o json").ok()).unwrap();
    assert_described(&json);
    assert_eq!(json["items"][0]["detail"]["generation"], generation + 1);
    assert_eq!(json["items"][0]["detail"]["not_listening"], json!([15001, 15006]));
    let chains = json["items"][0]["detail"]["chains"].as_array().unwrap();
    assert!(chains.iter().any(|chain| chain["attached"] == "nat output, priority -100"), "{chains:?}");
    let text = fleet.run("verify cart away --evidence").stdout;
    assert!(text.contains("ip rule priority 32764 fwmark 0x111/0xfff lookup 100: "), "{text}");
    assert!(
        text.contains("NOT LOOKED AT   its network namespace: nothing in the run directory says"),
        "{text}"
    );
}
