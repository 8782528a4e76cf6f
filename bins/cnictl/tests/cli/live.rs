//! A packet through what the kernel holds, ours and that of others: what is said, and what real packets do.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Families, Pod};

use crate::fleet::{Fleet, injected, with_proxy};
use crate::schema::assert_described;
use crate::{Run, row};

/// Flows that are tried, and rules of others that are met; `CNICTL_FLOWS` for more.
const FLOWS: u64 = 160;
/// Flows for each set of rules of others.
const EACH: u64 = 8;
/// Where flows go.
const ADDRESSES: [&str; 3] = ["1.2.3.4", "10.0.0.5", "10.1.2.3"];
const PORTS: [u16; 3] = [80, 443, 8080];
const USERS: [u32; 3] = [1000, 1337, 4242];

/// A node with one captured pod, and everything that can be reached from it.
struct Live {
    fleet: Fleet,
    pod: Pod,
    _listeners: [Listeners; 2],
}

impl Live {
    fn new() -> Self {
        let fleet = Fleet::new();
        let pod = Pod::new(Families::V4).unwrap();
        fleet.facts("shop", "web", &injected(), &with_proxy());
        fleet.sandbox("web", &pod, "10.77.0.2");
        fleet.load(&pod, "web", "--backend nftables");
        let inside = [15001, 15006, 9999].map(Listener::tcp);
        let outside = PORTS.map(Listener::tcp);
        let listeners =
            [Listeners::start(&pod, inside).unwrap(), Listeners::start(pod.peer(), outside).unwrap()];
        Self { fleet, pod, _listeners: listeners }
    }

    fn explain(&self, more: &str) -> Run {
        self.fleet.run(&format!("explain --live shop/web {more}"))
    }
}

/// Numbers from a seed (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A table of somebody else: one or two rules at some priority.
fn foreign(numbers: &mut Numbers) -> String {
    let nat = numbers.below(2) == 0;
    let priorities: &[i32] = if nat { &[-110, -101, -100, -99, 0] } else { &[-310, -160, -99, 0, 10] };
    let kind = if nat { "nat" } else { "filter" };
    let mut rules = String::new();
    for _ in 0..=numbers.below(2) {
        let to = match numbers.below(4) {
            0 => String::new(),
            1 => format!("ip daddr {} ", numbers.one(&ADDRESSES)),
            2 => "ip daddr 10.0.0.0/8 ".to_owned(),
            _ => format!("meta skuid {} ", numbers.one(&USERS)),
        };
        let more = if numbers.below(6) == 0 { "meta length 40-1500 " } else { "" };
        let act = match (nat, numbers.below(3)) {
            (true, 0 | 1) => "redirect to :9999",
            (false, 0) => "drop",
            (false, 1) if numbers.below(2) == 0 => "meta mark set 0x539",
            _ => "accept",
        };
        rules += &format!("{to}tcp dport {} {more}{act}\n", numbers.one(&PORTS));
    }
    let priority = numbers.one(priorities);
    format!("table ip foreign {{ chain out {{ type {kind} hook output priority {priority};\n{rules}}}\n}}\n")
}

#[test]
fn what_is_said_of_random_flows_is_what_real_packets_do() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let flows = number("CNICTL_FLOWS").unwrap_or(FLOWS);
    let seed = number("CNICTL_SEED").unwrap_or_else(|| std::process::id().into());
    println!("{flows} flows; repeat with CNICTL_SEED={seed}");
    let live = Live::new();
    let mut numbers = Numbers(seed.max(1));
    let (mut captured, mut passed, mut unknown) = (0, 0, 0);
    let mut rules = String::new();
    for index in 0..flows {
        if index % EACH == 0 {
            let _ = live.pod.nft("delete table ip foreign");
            rules = foreign(&mut numbers);
            live.pod.nft(&rules).unwrap();
        }
        let (address, port, uid) = (numbers.one(&ADDRESSES), numbers.one(&PORTS), numbers.one(&USERS));
        let run = live.explain(&format!("--to {address}:{port} --uid {uid} -o json"));
        let said: Value =
            serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
        let action = said["verdict"]["action"].as_str().unwrap();
        if action == "unknown" {
            unknown += 1;
            continue;
        }
        let flow = Flow::from(&live.pod).user(uid, uid).patience(Duration::from_millis(150));
        let outcome = flow.tcp(format!("{address}:{port}").parse().unwrap()).unwrap();
        let fits = match action {
            "captured" => outcome.port() == Some(15001),
            "dropped" => outcome.port().is_none(),
            _ => outcome.port() != Some(15001),
        };
        assert!(
            fits,
            "seed {seed}: {address}:{port} of {uid} came to {outcome}, and was said to be {said:#}\n{rules}"
        );
        if action == "captured" { captured += 1 } else { passed += 1 }
    }
    println!("{captured} captured, {passed} not, {unknown} unknown");
    assert!(
        captured > flows / 8 && passed > flows / 8 && unknown < flows / 2,
        "{captured} {passed} {unknown}"
    );
}

#[test]
fn each_hook_is_shown_with_its_rules_whose_they_are_and_the_end() {
    let live = Live::new();
    let text = live.explain("--to 1.2.3.4:80").ok();
    assert_eq!(row(&text, "VERDICT"), "captured by the proxy at 15001");
    assert!(text.contains("inet istio-proxy-nat") && !text.contains("foreign"), "{text}");
    let text = live.explain("--to 1.2.3.4:80 --uid 1337").ok();
    assert!(row(&text, "VERDICT").starts_with("passes by the proxy because of "), "{text}");
    // Somebody else is earlier.
    live.pod.nft("table ip mesh { chain out { type nat hook output priority -110; tcp dport 80 redirect to :9999; }; }").unwrap();
    let run =
        live.explain("--to 1.2.3.4:80 --diff").fails(1, &["the kernel's rules do not what the plan says"]);
    assert!(
        row(&run.stdout, "VERDICT").contains("ip mesh out")
            && row(&run.stdout, "VERDICT").ends_with("which is foreign"),
        "{run:?}"
    );
    assert_eq!(row(&run.stdout, "PLAN"), "differs: captured by the proxy at 15001");
    live.explain("--to 1.2.3.4:443 --diff").ok();
    let json: Value = serde_json::from_str(&live.explain("--to 1.2.3.4:80 -o json").ok()).unwrap();
    assert_described(&json);
    assert_eq!((&json["kind"], &json["verdict"]["action"]), (&json!("LiveExplanation"), &json!("bypass")));
    let rules = json["hooks"][0]["rules"].as_array().unwrap();
    assert!(rules.iter().any(|rule| rule["foreign"] == true && rule["handle"].is_u64()), "{json:#}");
    // A rule that cannot be read may do anything.
    live.pod
        .nft(
            "flush chain ip mesh out; add rule ip mesh out tcp dport 80 meta length 1-9000 redirect to :9999",
        )
        .unwrap();
    let text = live.explain("--to 1.2.3.4:80").ok();
    assert!(row(&text, "VERDICT").starts_with("unknown from here, because of "), "{text}");
    // What is missing is missing, whatever the plan says.
    live.pod.nft("flush ruleset").unwrap();
    let run = live.explain("--to 1.2.3.4:80 --diff").fails(1, &["goes where it was sent: no rule is for it"]);
    assert_eq!(row(&run.stdout, "PLAN"), "differs: captured by the proxy at 15001");
    live.explain("--to :80 --uid 7").fails(2, &["--to of a packet that the pod sends needs an address"]);
    live.fleet.run("explain --live shop/nobody --to 1.2.3.4:80").fails(3, &["no pod is known on this node"]);
}

#[test]
fn with_the_state_of_pods_it_is_said_what_becomes_of_a_packet() {
    let live = Live::new();
    live.fleet.facts("shop", "away", &injected(), &with_proxy());
    live.fleet.facts("shop", "node", &json!({}), &json!({"hostNetwork": true}));
    let packet = |more: &str| live.fleet.run(&format!("verify {more}"));
    // An application listens where the proxy should, which is a conflict, and packets go there all the same.
    for (more, exit, line) in [
        (
            "web --packet out:1.2.3.4:80",
            1,
            "packet: shop/web: captured by the proxy at 15001 (out, tcp 10.77.0.2:",
        ),
        ("web --packet out:1.2.3.4:80,uid=1337", 1, "packet: shop/web: passes by the proxy because of "),
        (
            "web --packet in::8080,from=10.77.0.1",
            1,
            "packet: shop/web: captured by the proxy at 15006 (in, tcp 10.77.0.1:",
        ),
        (
            "away --packet in::8080",
            4,
            "packet: shop/away: unknown: the network namespace of pod shop/away is not known: ",
        ),
        (
            "node --packet in::8080",
            3,
            "packet: shop/node: unknown: the network namespace of pod shop/node is not known (in, ",
        ),
        ("web --packet out:1.2.3.4:80,uid=x", 2, ""),
        ("web --packet out:1.2.3.4:80 -w", 2, ""),
    ] {
        let run = packet(more);
        let found = run.stdout.lines().any(|said| said.starts_with(line));
        assert!(run.exit == exit && (found || exit == 2), "{more}: {run:?}");
    }
    let json: Value = serde_json::from_str(&packet("web --packet out:1.2.3.4:80 -o json").stdout).unwrap();
    assert_described(&json);
    assert_eq!(
        json["items"][0]["packet"]["verdict"],
        json!({"action": "captured", "port": 15001, "text": "captured by the proxy at 15001"})
    );

    // The same pod, by where it is.
    let pods = |more: &str| live.fleet.run(&format!("pods -o name {more}"));
    let path = live.pod.path().display().to_string();
    assert_eq!(pods(&format!("--netns {path}")).ok(), "shop/web\n");
    let nobody = "no pod is known on this node";
    pods(&format!("--netns {path} away")).fails(3, &[&format!("{nobody}: away, network namespace ")]);
    pods("--netns /proc/self/ns/net").fails(3, &[nobody]);
    pods("--netns /etc/passwd").fails(2, &["/etc/passwd"]);
}
