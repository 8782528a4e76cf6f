//! Annotations that cannot be used: the message names what, where and what to do, and nothing changes.

use testkit::assert_says;

use crate::{everything, node_and_pod};

#[test]
fn each_bad_annotation_is_named() {
    let megabyte = "80,".repeat(350_000);
    let cases: &[(&str, &str, &str, &str)] = &[
        (
            "sidecar.istio.io/interceptionMode",
            "redirect",
            "redirectMode",
            "interceptionMode invalid: \"redirect\"",
        ),
        (
            "traffic.sidecar.istio.io/includeOutboundIPRanges",
            "10.0.0.0/33",
            "includeIPCidrs",
            "prefix length",
        ),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0", "includeIPCidrs", "10.0.0.0"),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "*", "excludeIPCidrs", "\"*\" is not possible"),
        (
            "traffic.sidecar.istio.io/excludeOutboundIPRanges",
            "fe80::1%eth0/64",
            "excludeIPCidrs",
            "not an IP address",
        ),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "65536", "excludeInboundPorts", "0 to 65535"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "80,,81", "includeInboundPorts", "80,,81"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "-1", "includeInboundPorts", "-1"),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "80 -j ACCEPT", "excludeOutboundPorts", "item"),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "$(reboot)", "excludeOutboundPorts", "$(reboot)"),
        (
            "traffic.sidecar.istio.io/includeOutboundPorts",
            "80\nCOMMIT\n*filter",
            "includeOutboundPorts",
            "80\\nCOMMIT",
        ),
        ("traffic.sidecar.istio.io/includeOutboundPorts", &megabyte, "includeOutboundPorts", "1050000 bytes"),
        (
            "traffic.sidecar.istio.io/excludeInterfaces",
            "abcdefghijklmnop",
            "excludeInterfaces",
            "too long (max 15 chars)",
        ),
        (
            "traffic.sidecar.istio.io/excludeInterfaces",
            "eth0;reboot",
            "excludeInterfaces",
            "invalid characters",
        ),
        (
            "istio.io/reroute-virtual-interfaces",
            "eth0,,eth1",
            "reroute-virtual-interfaces",
            "empty interface name",
        ),
        ("traffic.sidecar.istio.io/kubevirtInterfaces", "0net", "kubevirtInterfaces", "invalid characters"),
        ("sidecar.istio.io/proxUID", "root", "proxyUID", "\"root\" is not an id"),
        ("sidecar.istio.io/proxGID", "4294967296", "proxyGID", "4294967295"),
        ("traffic.sidecar.istio.io/inboundInterceptPort", "0", "inboundInterceptPort", "1 to 65535"),
        ("traffic.sidecar.istio.io/outboundInterceptPort", "http", "outboundInterceptPort", "\"http\""),
    ];
    for native_nftables in [true, false] {
        for (annotation, value, setting, says) in cases {
            let (mut node, pod) = node_and_pod(&[(annotation, value)]);
            node.conf["native_nftables"] = native_nftables.into();
            let before = everything(&pod);
            let answer = node.call("ADD", "web", pod.path()).run().unwrap();
            let (code, text) = answer.error().unwrap();
            assert_eq!(code, 999);
            assert_says(
                &text,
                &[
                    "default/web",
                    annotation,
                    &format!("annotation value error for value {setting}"),
                    says,
                    "correct it",
                ],
            );
            assert!(text.len() < 1000, "{} bytes of error would flood the pod's events", text.len());
            assert_eq!(before, everything(&pod), "{annotation}: something changed");
        }
    }
}

#[test]
fn many_ports_are_no_problem() {
    let ports: Vec<String> = (1..=3000).map(|port| port.to_string()).collect();
    let (node, pod) = node_and_pod(&[("traffic.sidecar.istio.io/excludeInboundPorts", &ports.join(","))]);
    node.add("web", pod.path()).unwrap();
    assert!(everything(&pod).contains("inbound port 3000 is excluded"));
    let again = node.call("CHECK", "web", pod.path()).run().unwrap();
    assert_eq!((again.exit, again.stdout.as_str()), (Some(0), ""), "{}", again.stderr);
}

#[test]
fn older_forms_are_converted_with_a_warning() {
    let (node, pod) = node_and_pod(&[
        ("sidecar.istio.io/proxUID", "2001"),
        ("sidecar.istio.io/proxGID", "2002"),
        ("traffic.sidecar.istio.io/inboundInterceptPort", "16006"),
        ("traffic.sidecar.istio.io/outboundInterceptPort", "16001"),
    ]);
    let answer = node.add("web", pod.path()).unwrap();
    for annotation in ["proxUID", "proxGID", "inboundInterceptPort", "outboundInterceptPort"] {
        assert!(
            answer
                .stderr
                .lines()
                .any(|line| line.contains("\"level\":\"warn\"") && line.contains(annotation)),
            "{annotation}: {}",
            answer.stderr
        );
    }
    let rules = pod.nft_text().unwrap();
    assert_says(&rules, &["skuid 2001", "skgid 2002", "redirect to :16006", "redirect to :16001"]);
    assert!(!rules.contains("1337"), "{rules}");
}

#[test]
fn interception_none_means_no_rules_and_success() {
    let (node, pod) = node_and_pod(&[("sidecar.istio.io/interceptionMode", "NONE")]);
    let before = everything(&pod);
    let answer = node.add("web", pod.path()).unwrap();
    assert_says(&answer.stderr, &["interception-none"]);
    assert_eq!(before, everything(&pod));
}

#[test]
fn short_lists_that_multiply_are_refused_before_anything_is_planned() {
    let list = |n: usize, item: &dyn Fn(usize) -> String| (0..n).map(item).collect::<Vec<_>>().join(",");
    let range = |n: usize| format!("10.{}.{}.0/24", n / 256, n % 256);
    let interface = |n: usize| format!("net{n}");
    let annotations = |n: usize| {
        [
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", list(n, &range)),
            ("istio.io/reroute-virtual-interfaces", list(n, &interface)),
        ]
    };
    let many = annotations(1000);
    let (node, pod) = node_and_pod(&many.each_ref().map(|(key, value)| (*key, value.as_str())));
    let answer = node.call("ADD", "web", pod.path()).run().unwrap();
    let (_, text) = answer.error().unwrap();
    assert_says(
        &text,
        &["istio.io/reroute-virtual-interfaces", "1000 interfaces and 1000 ranges", "give fewer"],
    );
    assert!(answer.took < std::time::Duration::from_secs(2), "{:?}", answer.took);
    let some = annotations(50);
    let (node, pod) = node_and_pod(&some.each_ref().map(|(key, value)| (*key, value.as_str())));
    node.add("web", pod.path()).unwrap();
    assert_says(&everything(&pod), &["net49"]);
}
