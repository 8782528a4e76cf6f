//! What is no rule: sysctls, processes, programs.

use capture::PlanTarget;
use capture::settings::{OwnerGroups, Settings};
use ruleset::{Backend, Plan};

use super::found;
use crate::sample::{ambient, pod_with, sidecar};
use crate::{
    BpfProgram, ConflictId, LookedAt, ObservedAddress, ObservedListener, ObservedNetns, ObservedProcess,
    Resolution, conflicts, examine,
};

fn with_sysctl(mut observed: ObservedNetns, name: &str, value: &str) -> ObservedNetns {
    observed.sysctls.insert(name.to_owned(), value.to_owned());
    observed
}

#[test]
fn a_strict_reverse_path_filter_breaks_a_transparent_proxy_only() {
    for (tproxy, wanted) in [(true, &["CF-P13 error"][..]), (false, &[])] {
        let plan = sidecar(Backend::Nftables, tproxy);
        let observed = with_sysctl(pod_with(&plan), "net/ipv4/conf/all/rp_filter", "1");
        assert_eq!(found(&observed, &plan), wanted);
    }
    let plan = sidecar(Backend::Nftables, true);
    let observed = with_sysctl(pod_with(&plan), "net/ipv4/conf/all/rp_filter", "1");
    let resolution = conflicts(&observed, &plan)[0].resolution;
    assert_eq!(resolution, Resolution::Sysctl { name: "net/ipv4/conf/all/rp_filter", value: "2" });
    let loose = with_sysctl(observed, "net/ipv4/conf/all/rp_filter", "2");
    assert_eq!(found(&loose, &plan), [""; 0]);
}

#[test]
fn settings_that_are_in_the_way_are_told() {
    let (observed, plan) = ambient(Backend::Nftables);
    let set = |name, value| found(&with_sysctl(observed.clone(), name, value), &plan);
    assert_eq!(set("net/ipv4/ip_local_port_range", "1024\t65535"), ["CF-P13 warning"]);
    assert_eq!(set("net/ipv4/ip_local_port_range", "32768\t60999"), [""; 0]);
    assert_eq!(set("net/ipv6/conf/lo/disable_ipv6", "1"), ["CF-P13 warning"]);
    assert_eq!(set("net/ipv4/conf/eth0/route_localnet", "1"), ["CF-P13 warning"]);
    assert_eq!(set("net/ipv4/ip_forward", "1"), [""; 0], "most pods have that from their node");
    let reserved = with_sysctl(observed.clone(), "net/ipv4/ip_local_reserved_ports", "8080,15000-15060");
    assert_eq!(found(&with_sysctl(reserved, "net/ipv4/ip_local_port_range", "1024 65535"), &plan), [""; 0]);
}

#[test]
fn a_pod_that_forwards_for_an_address_that_came_later_is_told() {
    let (observed, plan) = ambient(Backend::Nftables);
    let mut observed = with_sysctl(observed, "net/ipv4/ip_forward", "1");
    observed.addresses.push(ObservedAddress {
        interface: "tailscale0".to_owned(),
        address: "100.64.0.9".parse().unwrap(),
        prefix: 32,
    });
    assert_eq!(found(&observed, &plan), ["CF-P18 warning"]);
}

#[test]
fn processes_that_are_in_the_way_are_told_with_their_container() {
    let plan = sidecar(Backend::Nftables, false);
    let mut observed = pod_with(&plan);
    let process = |pid, uid, command: &str, container: &str, proxy| ObservedProcess {
        pid,
        uid,
        gid: uid,
        container: Some(container.to_owned()),
        command: command.to_owned(),
        proxy,
        net_admin: pid == 7,
    };
    observed.processes = vec![
        process(5, 1337, "envoy", "istio-proxy", true),
        process(6, 1337, "web", "shop", false),
        process(7, 1000, "netd", "tools", false),
    ];
    let listens = |port, uid, pid| ObservedListener { port, uid, pid: Some(pid), container: None };
    observed.listeners = vec![listens(15006, 1337, 5), listens(15001, 1000, 7), listens(8080, 1337, 6)];
    let told = conflicts(&observed, &plan);
    let of = |id| told.iter().find(|conflict| conflict.id == id).map(|conflict| conflict.foreign.as_str());
    assert_eq!(of(ConflictId::P16), Some("netd (pid 7) of container tools listens on port 15001"));
    assert_eq!(of(ConflictId::P17), Some("web (pid 6) of container shop runs as user 1337"));
    assert_eq!(of(ConflictId::P15), Some("netd (pid 7) of container tools has CAP_NET_ADMIN"));
    assert_eq!(found(&observed, &plan), ["CF-P15 info", "CF-P16 error", "CF-P17 error"]);
}

/// Users and groups are those of the plan, whichever the proxy's settings name; a group that is not captured is not the proxy's.
#[test]
fn the_proxy_is_the_user_and_group_of_the_plan() {
    let plan_of = |settings| capture::plan(&settings, PlanTarget { backend: Backend::Nftables, ipv6: true });
    let runs = |plan: &Plan, uid, gid| {
        let process = ObservedProcess { pid: 6, uid, gid, command: "web".to_owned(), ..Default::default() };
        found(&ObservedNetns { processes: vec![process], ..pod_with(plan) }, plan)
    };
    let own = Settings { proxy_uids: vec![4711], proxy_gids: vec![4712], ..Settings::default() };
    let plan = plan_of(own.clone());
    for (uid, gid, wanted) in [(1337, 1337, 0), (4711, 0, 1), (0, 4712, 1), (4712, 4711, 0)] {
        assert_eq!(runs(&plan, uid, gid).len(), wanted, "user {uid}, group {gid}");
    }
    for groups in [OwnerGroups::Only(vec![202]), OwnerGroups::AllBut(vec![202])] {
        let plan = plan_of(Settings { owner_groups: groups, ..own.clone() });
        assert_eq!((runs(&plan, 1000, 202), runs(&plan, 1000, 4712).len()), (Vec::new(), 1));
    }
}

#[test]
fn in_ambient_mode_sockets_of_ztunnel_are_of_no_container_of_the_pod() {
    let (mut observed, plan) = ambient(Backend::Nftables);
    observed.listeners = vec![ObservedListener { port: 15006, ..ObservedListener::default() }];
    assert_eq!(found(&observed, &plan), [""; 0]);
    observed.listeners[0].container = Some("shop".to_owned());
    assert_eq!(found(&observed, &plan), ["CF-P16 error"]);
}

#[test]
fn programs_that_translate_or_drop_are_told() {
    let (mut observed, plan) = ambient(Backend::Nftables);
    let program = |attached: &str, name: &str| BpfProgram {
        attached: attached.to_owned(),
        object: "the pod".to_owned(),
        name: name.to_owned(),
        id: 4,
    };
    observed.programs = LookedAt::Found(vec![program("cgroup/connect4", "cil_sock4_connect")]);
    assert_eq!(found(&observed, &plan), ["CF-H5 error"]);
    observed.programs = LookedAt::Found(vec![program("cgroup/connect4", "other")]);
    observed.filters = LookedAt::Found(vec![program("tc ingress", "filter")]);
    assert_eq!(found(&observed, &plan), ["CF-H5 warning", "CF-P4 warning"]);
    // One that runs before everything else, and one of whom nobody knows.
    (observed.programs, observed.filters) =
        (LookedAt::Found(Vec::new()), LookedAt::Not("no answer".to_owned()));
    observed.links[1].xdp = Some(7);
    let examined = examine(&observed, &plan);
    let shown: Vec<&str> = examined.conflicts.iter().map(|conflict| &*conflict.foreign).collect();
    assert_eq!(shown, ["program 7 at xdp of eth0"]);
    assert_eq!(examined.not_looked_at, ["programs that the kernel runs on packets: no answer"]);
}
