//! A pod's annotations, its proxy's variables and those of the plugin's process, to rules for both backends.

use std::collections::{BTreeMap, HashSet};

use capture::annotations::{NodeSettings, PodSettings, parse_settings};
use capture::{Container, PlanTarget, Pod, Settings, plan};
use fuzz::{Outcome, Target, of_text};
use proptest::prelude::*;
use proptest::sample::select;
use ruleset::Backend;

/// Annotations, and with `$` variables of the proxy, with `%` those of the process.
const NAMES: [&str; 22] = [
    "sidecar.istio.io/status",
    "sidecar.istio.io/interceptionMode",
    "sidecar.istio.io/proxUID",
    "sidecar.istio.io/proxGID",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "traffic.sidecar.istio.io/inboundInterceptPort",
    "traffic.sidecar.istio.io/outboundInterceptPort",
    "istio.io/reroute-virtual-interfaces",
    "$ISTIO_META_DNS_CAPTURE",
    "$ISTIO_DUAL_STACK",
    "$INVALID_DROP",
    "$DISABLE_ENVOY",
    "%ISTIO_OUTBOUND_OWNER_GROUPS",
    "%ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
    "%ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
];

const WORDS: &[&str] = &[
    "*",
    ",",
    "/",
    "TPROXY",
    "REDIRECT",
    "NONE",
    "true",
    "false",
    "TRUE",
    "0",
    "1",
    "65535",
    "65536",
    "-1",
    "1337",
    "15001",
    "15006",
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "fd00::/8",
    "127.0.0.0/8",
    "::ffff:10.0.0.0/104",
    "/33",
    "/129",
    "eth0",
    "net+",
    "lo",
    "\n",
    "=",
    " ",
    "\u{202e}",
    "\u{feff}",
    "root",
    "1337,",
    "9,9",
];

fn value() -> impl Strategy<Value = String> {
    let word = || select(WORDS).prop_map(str::to_owned);
    let number = (0u32..70_000).prop_map(|number| number.to_string());
    let range =
        (any::<[u8; 4]>(), 0u8..34).prop_map(|(ip, len)| format!("{}/{len}", std::net::Ipv4Addr::from(ip)));
    let range6 =
        (any::<[u16; 8]>(), 0u8..130).prop_map(|(ip, len)| format!("{}/{len}", std::net::Ipv6Addr::from(ip)));
    let one = prop_oneof![word(), number, range, range6, "[a-z0-9.+-]{1,18}"];
    prop::collection::vec(one, 0..6).prop_map(|parts| parts.join(","))
}

fn generate() -> BoxedStrategy<Vec<u8>> {
    let line = (select(&NAMES[..]), value()).prop_map(|(name, value)| format!("{name}={value}\n"));
    prop::collection::vec(line, 0..7).prop_map(|lines| lines.concat().into_bytes()).boxed()
}

/// The lines `name=value`; `\u{2424}` stands for the end of a line in a value.
fn members(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('\n').filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.replace('\u{2424}', "\n"))).collect()
}

fn run(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let members = members(&text);
    let node = NodeSettings::from_env(&|name| members.get(&format!("%{name}")).cloned(), &|name| {
        (name == "root").then_some(0)
    });
    let node = match node {
        Ok(node) => node,
        Err(error) => return said(&error.to_string()),
    };
    let env =
        members.iter().filter_map(|(name, value)| Some((name.strip_prefix('$')?.to_owned(), value.clone())));
    let proxy = Container { name: "istio-proxy".to_owned(), env: env.collect(), ..Container::default() };
    let annotations = members.into_iter().filter(|(name, _)| !name.starts_with(['$', '%'])).collect();
    let pod = Pod { namespace: "shop".into(), name: "web".into(), annotations, ..Pod::default() };
    match parse_settings(&pod, &[&proxy], &node) {
        Err(error) => said(&error.to_string()),
        Ok(PodSettings::None) => Outcome::of("none"),
        Ok(PodSettings::Capture { settings, warnings }) => {
            let warnings: Vec<Outcome> = warnings.iter().map(|warning| said(warning)).collect();
            Outcome::of((warnings, planned(&settings)))
        }
    }
}

/// Texts stand in lines of the log and in events of the pod.
fn said(text: &str) -> Outcome {
    assert!(!text.contains(char::is_control), "control characters: {text:?}");
    assert!(text.len() < 4096, "{} bytes of message", text.len());
    of_text(text)
}

/// Plans for every namespace, checked and printed; the rules' reasons are what tells outcomes apart.
fn planned(settings: &Settings) -> Vec<String> {
    let mut whys = HashSet::new();
    for backend in [Backend::Nftables, Backend::Iptables] {
        for ipv6 in [false, true] {
            let plan = plan(settings, PlanTarget { backend, ipv6 });
            let [ruleset] = &plan.layers[..] else { panic!("a plan has one layer") };
            ruleset::check(ruleset)
                .unwrap_or_else(|error| panic!("{backend:?}, IPv6 {ipv6}: {error}: {settings:?}"));
            printed(&plan, ruleset);
            let rules = ruleset.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
            whys.extend(rules.map(|rule| rule.why.to_string()));
        }
    }
    let mut whys: Vec<String> = whys.into_iter().collect();
    whys.sort_unstable();
    whys
}

/// A rule is one line, whatever is in it.
fn printed(plan: &ruleset::Plan, ruleset: &ruleset::Ruleset) {
    if plan.backend == Backend::Nftables {
        return;
    }
    for &family in ruleset.families() {
        let rules: usize = ruleset
            .tables
            .iter()
            .flat_map(|table| &table.chains)
            .map(|chain| ruleset::iptables::rules(chain, family).count())
            .sum();
        let text = ruleset::iptables::render(&plan.layers, family)
            .unwrap_or_else(|error| panic!("{family:?}: {error}"));
        let lines = text.lines().filter(|line| line.starts_with("-A ") || line.starts_with("-I ")).count();
        assert_eq!(lines, rules, "{text}");
    }
}

const TARGET: Target = Target {
    name: "annotations",
    package: env!("CARGO_PKG_NAME"),
    dictionary: WORDS,
    max_len: 4096,
    memory: 4 << 20,
    generate,
    run,
};

#[test]
fn fuzz_annotations() {
    TARGET.fuzz();
}
