//! The way of real packets through a pod's rules: what is told is what the rules do, and nothing is left.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Families, Pod, until};

use crate::Run;
use crate::fleet::{Fleet, injected, with_proxy};
use crate::schema::assert_described;

const SOON: Duration = Duration::from_secs(20);
const TABLE: &str = "table inet istio-trace";

struct Traced {
    fleet: Fleet,
    pod: Pod,
    _listeners: [Listeners; 2],
}

impl Traced {
    fn new(families: Families) -> Self {
        let fleet = Fleet::new();
        let pod = Pod::new(families).unwrap();
        fleet.facts("shop", "web", &injected(), &with_proxy());
        fleet.sandbox("web", &pod, "10.77.0.2");
        fleet.load(&pod, "web", "--backend nftables");
        let inside = [15001, 15006].map(Listener::tcp);
        let outside = [80, 443].map(Listener::tcp);
        let listeners =
            [Listeners::start(&pod, inside).unwrap(), Listeners::start(pod.peer(), outside).unwrap()];
        Self { fleet, pod, _listeners: listeners }
    }

    fn rules(&self) -> String {
        self.pod.nft_text().unwrap()
    }

    /// Begins a trace, and returns when packets are followed.
    fn begin(&self, more: &str) -> Child {
        let mut command = self.fleet.command(&format!("trace shop/web {more}"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until(
            "it ends or traces",
            SOON,
            || child.try_wait().unwrap().is_some() || self.rules().contains(TABLE),
            || self.rules(),
        )
        .unwrap();
        match child.try_wait().unwrap() {
            None => child,
            Some(_) => panic!("{:?}", Run::of(&child.wait_with_output().unwrap())),
        }
    }

    fn send(&self, to: &str, uid: u32) {
        let flow = Flow::from(&self.pod).user(uid, uid).patience(Duration::from_millis(300));
        flow.tcp(to.parse().unwrap()).unwrap();
    }

    /// The first packet to there that is traced.
    fn trace(&self, to: &str, uid: u32) -> Value {
        let child = self.begin(&format!("--out --to {to} --count 1 --duration 30 -o json"));
        self.send(to, uid);
        let run = Run::of(&child.wait_with_output().unwrap());
        let document: Value = serde_json::from_str(&run.ok()).unwrap();
        assert_described(&document);
        assert!(!self.rules().contains(TABLE), "the table is still there");
        document["packets"][0].clone()
    }
}

/// Table, chain and text of each rule that is met; the kernel's routing has no table, and a policy no verdict of a rule.
fn met(rules: &Value) -> Vec<String> {
    let text = |rule: &Value, name: &str| rule[name].as_str().unwrap_or_default().to_owned();
    let rules =
        rules.as_array().unwrap().iter().filter(|rule| rule["table"] != "" && rule["text"] != "policy");
    rules.map(|rule| ["table", "chain", "text"].map(|name| text(rule, name)).join(" | ")).collect()
}

#[test]
fn the_way_of_a_packet_is_that_which_the_rules_say() {
    let traced = Traced::new(Families::V4);
    let foreign = "table ip other { chain out { type filter hook output priority 5; tcp dport 443 counter drop; tcp dport 80 counter; }; }";
    for others in ["", foreign] {
        traced.pod.nft(others).unwrap();
        for (to, uid, dropped) in [
            ("1.2.3.4:80", 1000, false),
            ("1.2.3.4:443", 1337, !others.is_empty()),
            ("1.2.3.4:80", 1337, false),
        ] {
            let packet = traced.trace(to, uid);
            let said = traced.fleet.run(&format!("explain --live shop/web --to {to} --uid {uid} -o json"));
            let said: Value = serde_json::from_str(&said.ok()).unwrap();
            let hooks = said["hooks"].as_array().unwrap();
            let expected: Vec<String> = hooks.iter().flat_map(|hook| met(&hook["rules"])).collect();
            let seen = met(&packet["steps"]);
            let is_captured = said["verdict"]["action"] == "captured";
            // What is followed by explain ends at the proxy's port; the packet goes on to its socket.
            let seen = if is_captured { &seen[..expected.len().min(seen.len())] } else { &seen[..] };
            assert!(!expected.is_empty() && seen == expected, "{to} of {uid}: {packet:#}\n{said:#}");
            let end = packet["verdict"]["text"].as_str().unwrap();
            assert_eq!(packet["verdict"]["action"] == "dropped", dropped, "{packet:#}");
            if is_captured {
                assert!(end.contains(":15001: ") && end.contains(" listens"), "{end}");
            }
            if dropped {
                assert!(end.ends_with("of ip other out, which is foreign"), "{end}");
            }
        }
    }
}

#[test]
fn what_comes_in_is_followed_in_both_families_and_shown_to_people() {
    let traced = Traced::new(Families::Dual);
    for to in ["10.77.0.2:8080", "[fd77::2]:8080"] {
        let child = traced.begin("--in --to :8080 --count 1 --duration 30");
        let flow = Flow::from(traced.pod.peer()).patience(Duration::from_millis(300));
        flow.tcp(to.parse().unwrap()).unwrap();
        let text = Run::of(&child.wait_with_output().unwrap()).ok();
        assert!(text.contains("packet 1: accepted, for ") && text.contains(":15006: "), "{text}");
        assert!(text.contains("inet istio-proxy-nat") && text.contains("prerouting"), "{text}");
        assert!(!text.contains("istio-trace"), "{text}");
    }
}

#[test]
fn whatever_ends_a_trace_nothing_is_left_and_nobody_takes_it_for_drift() {
    let traced = Traced::new(Families::V4);
    let before = traced.rules();
    let verified = traced.fleet.run("verify -o json web");
    let conflicts = traced.fleet.run("conflicts web");
    let mut child = traced.begin("--to 9.9.9.9 --duration 60");
    let during = traced.fleet.run("verify -o json web");
    let state = |run: &Run| {
        let list: Value = serde_json::from_str(&run.stdout).unwrap();
        ["state", "drift", "conflicts"].map(|name| list["items"][0][name].clone())
    };
    assert_eq!((during.exit, state(&during)), (verified.exit, state(&verified)));
    assert_eq!(traced.fleet.run("conflicts web").stdout, conflicts.stdout);
    // Somebody else may listen, and not trace.
    traced.fleet.run("trace shop/web").fails(1, &["somebody traces in pod shop/web already", "--join"]);
    traced
        .fleet
        .run("trace shop/web --join --duration 0.2")
        .fails(3, &["no such packet came in 0.2 seconds"]);
    // Nobody else can change the table; when its program is gone, so is the table.
    assert!(traced.pod.nft("delete table inet istio-trace").is_err());
    child.kill().unwrap();
    child.wait().unwrap();
    until("the table is gone", Duration::from_secs(2), || !traced.rules().contains(TABLE), || traced.rules())
        .unwrap();
    assert_eq!(traced.rules(), before);
    traced.fleet.run("trace shop/web --to 9.9.9.9 --duration 0.2").fails(3, &["no such packet came"]);
    assert_eq!(traced.rules(), before);
    traced.fleet.run("trace shop/web --to 9.9.9.9:53 --protocol icmp").fails(2, &["has no port"]);
    traced.fleet.run("trace shop/web --from fd77::2 --to 9.9.9.9").fails(2, &["different families"]);
    traced.fleet.run("trace shop/web --duration 61").fails(2, &["at most 60 seconds"]);
    traced.fleet.run("trace shop/nobody").fails(3, &["no pod is known on this node"]);
}

#[test]
fn rules_that_drop_are_named_with_what_they_drop() {
    let traced = Traced::new(Families::V4);
    traced.pod.nft("table ip other { chain out { type filter hook output priority 5; tcp dport 443 counter drop; udp dport 53 counter drop; }; }").unwrap();
    let child = traced
        .fleet
        .command("trace shop/web --drops --duration 2 -o json")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    traced.send("1.2.3.4:443", 1337);
    let run = Run::of(&child.wait_with_output().unwrap());
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_described(&document);
    let items = document["items"].as_array().unwrap();
    let of_pod: Vec<&Value> = items.iter().filter(|item| item["place"] == "pod").collect();
    assert_eq!(of_pod.len(), 1, "{document:#}");
    assert_eq!((&of_pod[0]["table"], &of_pod[0]["chain"]), (&json!("ip other"), &json!("out")));
    assert!(of_pod[0]["packets"].as_u64().unwrap() >= 1, "{document:#}");
}
