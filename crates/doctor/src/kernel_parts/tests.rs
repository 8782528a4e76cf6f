#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use checks::CheckState::{self, Failed, Ok as Good, Skipped, Unknown, Warning};

use super::*;

const ALL: Support = Support { tables: true, redirect: true, marks: true, tproxy: true };
const NONE: Support = Support { tables: false, redirect: false, marks: false, tproxy: false };

/// What the kernel and the programs of the node allow, against what its configuration asks for.
#[test]
fn a_missing_backend_is_named_where_it_is_needed() {
    let no_nat = Support { redirect: false, marks: false, tproxy: false, ..ALL };
    let no_tproxy = Support { tproxy: false, ..ALL };
    let no_marks = Support { marks: false, tproxy: false, ..ALL };
    let sidecar = KernelDemand::default();
    let ambient = KernelDemand { ambient: true, ..sidecar };
    let (only_nft, only_iptables) =
        (KernelDemand { nftables: Some(true), ..sidecar }, KernelDemand { nftables: Some(false), ..sidecar });
    for (support, iptables, asked, nft, by_iptables_state, part) in [
        (ALL, true, sidecar, Good, Good, "nat, redirect, tproxy"),
        (ALL, false, sidecar, Good, Skipped, "nat, redirect, tproxy"),
        (ALL, false, only_iptables, Good, Failed, "nat, redirect, tproxy"),
        (NONE, false, sidecar, Failed, Failed, "no nf_tables"),
        (NONE, true, sidecar, Warning, Good, "by iptables"),
        (NONE, true, only_nft, Failed, Good, "asks for nf_tables only"),
        (no_nat, false, sidecar, Failed, Failed, "no nf_tables nat"),
        (no_tproxy, false, sidecar, Warning, Skipped, "no tproxy"),
        (no_marks, false, sidecar, Warning, Skipped, "no tproxy"),
        (no_marks, false, ambient, Failed, Failed, "marks of connections"),
    ] {
        let usable = if iptables { Ok(()) } else { Err("cannot find iptables-restore".to_owned()) };
        let found = nftables(&Ok(support), Some(&usable), asked);
        assert_eq!(found.state, nft, "{support:?} {asked:?}: {found}");
        assert!(found.text.contains(part), "{found}");
        let found = by_iptables(&Ok(support), Some(&usable), asked);
        assert_eq!(found.state, by_iptables_state, "{support:?} {asked:?}: {found}");
    }
    let refused = Err("permission denied".to_owned());
    assert_eq!(nftables(&refused, None, sidecar).state, Unknown);
    assert_eq!(by_iptables(&refused, None, sidecar).state, Unknown);
}

#[test]
fn limits_are_judged_by_what_is_left() {
    let states: Vec<CheckState> = [(0, 0), (10, 100), (74, 100), (75, 100), (89, 100), (90, 100), (120, 100)]
        .map(|(count, max)| fill(count, max).state)
        .to_vec();
    assert_eq!(states, [Good, Good, Good, Warning, Warning, Failed, Failed]);
    for (limits, state) in [
        ("Max open files            1048576              1048576              files", Good),
        ("Max open files            unlimited            unlimited            files", Good),
        (
            "Max processes 1 1 processes\nMax open files            1024                 524288               files",
            Failed,
        ),
        ("", Unknown),
    ] {
        assert_eq!(files_of(limits).state, state, "{limits}");
    }
}

#[test]
fn sysctls_are_read_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let captured = Some(true);
    assert_eq!(conntrack(dir.path()).state, Skipped);
    assert_eq!(namespaces(dir.path()).state, Unknown);
    assert_eq!(ipv6(dir.path(), None).state, Good);
    assert_eq!(ipv6(dir.path(), captured).state, Failed);
    write("net/netfilter/nf_conntrack_count", "950\n");
    assert_eq!(conntrack(dir.path()).state, Unknown);
    write("net/netfilter/nf_conntrack_max", "1000\n");
    write("user/max_net_namespaces", "10\n");
    write("net/ipv6/conf/all/disable_ipv6", "1\n");
    assert_eq!(conntrack(dir.path()).text, "950 of 1000 connections are tracked (95 %)");
    assert_eq!((conntrack(dir.path()).state, namespaces(dir.path()).state), (Failed, Failed));
    assert_eq!(ipv6(dir.path(), captured).state, Failed);
    write("net/ipv6/conf/all/disable_ipv6", "0\n");
    assert_eq!(ipv6(dir.path(), captured).state, Good);
}

/// On the machine of the test: it has nf_tables, or no test of rules would pass.
#[test]
fn a_kernel_that_loads_rules_is_found_to_do_so() {
    let before = std::fs::read_link("/proc/self/ns/net").unwrap();
    let support = support().unwrap();
    assert!(support.tables && support.redirect, "{support:?}");
    assert!(matches!(events().state, Good | Warning));
    assert_eq!(std::fs::read_link("/proc/self/ns/net").unwrap(), before);
}
