//! Rules of other meshes and of containers inside of the pod, told by the names of their chains.

use ruleset::Backend;
use ruleset::listed::{ListedTable, Lister};

use super::Found;
use super::view::NetnsView;
use crate::{Conflict, ConflictId, ConflictPlace, Severity};

/// Beginnings of the names of chains or tables that other meshes make in a pod, and the mesh.
const MESHES: [(&str, &str); 9] = [
    ("PROXY_INIT_", "linkerd"),
    ("KUMA_MESH_", "kuma"),
    ("MESH_INBOUND", "kuma"),
    ("MESH_OUTBOUND", "kuma"),
    ("CONSUL_PROXY_", "consul"),
    ("CONSUL_DNS_", "consul"),
    ("consul_tproxy", "consul"),
    ("OSM_PROXY_", "Open Service Mesh"),
    ("CILIUM_", "cilium"),
];
/// The same of what runs containers.
const CONTAINERS: [&str; 4] = ["DOCKER", "NETAVARK", "CNI-HOSTPORT", "PODMAN"];
/// What the names of istio-init's chains begin with.
const ISTIO: &str = "ISTIO_";

pub(super) fn find(view: &NetnsView<'_>, found: &mut Found) {
    for (table, chain) in view.chains() {
        let name = table.name.split(' ').nth(1).unwrap_or_default();
        let is_foreign = || chain.rules.iter().any(|rule| table.is_foreign(rule));
        let mut meshes = MESHES.iter();
        let mesh = meshes.find(|(prefix, _)| chain.name.starts_with(prefix) || name == *prefix);
        if let Some((_, mesh)) = mesh {
            found.add(other_mesh(table, &chain.name, mesh));
        } else if CONTAINERS.iter().any(|prefix| chain.name.starts_with(prefix)) {
            found.add(containers(table, &chain.name));
        } else if chain.name.starts_with(ISTIO) && table.lister.is_iptables() && is_foreign() {
            found.add(istio_init(view, table, &chain.name));
        }
    }
    variants(view, found);
}

fn other_mesh(table: &ListedTable, chain: &str, mesh: &str) -> Conflict {
    let affects = format!(
        "{mesh} captures the pod, too: which of both proxies gets a connection depends on the order of the rules"
    );
    let advice = format!(
        "take the pod out of one of both meshes; its annotations and namespace say why {mesh} took it"
    );
    named(ConflictId::P8, Severity::Error, table, chain, affects, advice)
}

fn containers(table: &ListedTable, chain: &str) -> Conflict {
    let affects = "containers run inside of the pod; what they send, and what they ask name servers, comes by interfaces of their own";
    let advice = "name these interfaces in the annotation istio.io/reroute-virtual-interfaces, if they are to be captured";
    named(ConflictId::P9, Severity::Info, table, chain, affects, advice)
}

/// Rules of istio-init beside ours.
fn istio_init(view: &NetnsView<'_>, table: &ListedTable, chain: &str) -> Conflict {
    let of_ours = match view.plan.backend {
        Backend::Nftables => "nf_tables",
        Backend::Iptables => "iptables",
    };
    let affects = format!(
        "the pod has rules of istio-init beside ours in {of_ours}: a connection may be redirected by either"
    );
    let advice = "take the init container istio-init out of the pod, or the pod out of the node's capture";
    named(ConflictId::P7, Severity::Error, table, chain, affects, advice)
}

/// Both variants of iptables hold rules.
fn variants(view: &NetnsView<'_>, found: &mut Found) {
    let holds = |wanted: Lister| {
        let mut tables = view.observed.tables.iter().filter(move |table| table.lister == wanted);
        tables.find(|table| table.chains.iter().any(|chain| !chain.rules.is_empty()))
    };
    if let (Some(legacy), Some(_)) = (holds(Lister::IptablesLegacy), holds(Lister::IptablesNft)) {
        let affects =
            "both variants of iptables hold rules: each program shows its own only, and the kernel runs both";
        let advice =
            "use one variant in the pod; `iptables-legacy-save` and `iptables-nft-save` show what each has";
        found.add(named(ConflictId::P11, Severity::Warning, legacy, "", affects, advice));
    }
}

/// A conflict by a chain, or by a whole table.
fn named(
    id: ConflictId,
    severity: Severity,
    table: &ListedTable,
    chain: &str,
    affects: impl Into<String>,
    advice: impl Into<String>,
) -> Conflict {
    let (family, name) = table.name.split_once(' ').unwrap_or(("", &table.name));
    let foreign = match chain {
        "" => format!("table {}", table.name),
        chain => format!("chain {chain} of table {}", table.name),
    };
    let place = ConflictPlace {
        family: family.to_owned(),
        table: name.to_owned(),
        chain: chain.to_owned(),
        ..ConflictPlace::default()
    };
    Conflict { place, ..Conflict::of_setting(id, severity, foreign, affects, advice) }
}
