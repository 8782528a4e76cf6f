//! Programs that the kernel runs beside rules.

use super::Found;
use super::view::NetnsView;
use crate::{BpfProgram, Conflict, ConflictId, LookedAt, NetnsScope, Severity};

/// What the names of cilium's programs begin with.
const CILIUM: &str = "cil_";

pub(super) fn find(view: &NetnsView<'_>, found: &mut Found) {
    // Those of the node's own namespace are not asked for.
    let is_pod = view.observed.scope == NetnsScope::Pod;
    match &view.observed.programs {
        LookedAt::Found(programs) => programs.iter().for_each(|program| judge(view, program, found)),
        // A container does not see the control groups of others.
        LookedAt::Not(why) if is_pod => found.out_of_sight.push(not_looked_at("connect(2)", why)),
        LookedAt::Not(_) => {}
    }
    match &view.observed.filters {
        LookedAt::Found(filters) => filters.iter().for_each(|filter| judge(view, filter, found)),
        LookedAt::Not(why) if is_pod => found.not_looked_at.push(not_looked_at("packets", why)),
        LookedAt::Not(_) => {}
    }
    let with_xdp = view.observed.links.iter().filter_map(|link| Some((link, link.xdp?)));
    for (link, id) in with_xdp.filter(|_| is_pod) {
        let (attached, object) = ("xdp".to_owned(), link.name.clone());
        found.add(on_packets(&BpfProgram { attached, object, name: String::new(), id }));
    }
}

fn not_looked_at(on: &str, why: &str) -> String {
    format!("programs that the kernel runs on {on}: {why}")
}

fn judge(view: &NetnsView<'_>, program: &BpfProgram, found: &mut Found) {
    let connects = ["cgroup/connect", "cgroup/sendmsg"].iter().any(|at| program.attached.starts_with(at));
    match view.observed.scope {
        _ if connects => found.add(connect(program)),
        NetnsScope::Node if program.name.starts_with(CILIUM) => found.add(masquerade(program)),
        // Nearly every node has programs on its interfaces.
        NetnsScope::Node => {}
        NetnsScope::Pod => found.add(on_packets(program)),
    }
}

fn shown(program: &BpfProgram) -> String {
    let BpfProgram { attached, object, name, id } = program;
    let what = match (&**name, *id) {
        (kind, 0) => format!("filter {kind}"),
        ("", id) => format!("program {id}"),
        (name, id) => format!("{name} (program {id})"),
    };
    format!("{what} at {attached} of {object}")
}

/// It may translate a Service's address before there is a packet.
fn connect(program: &BpfProgram) -> Conflict {
    let (severity, advice) = match program.name.starts_with(CILIUM) {
        true => (Severity::Error, "set socketLB.hostNamespaceOnly=true in cilium's values"),
        false => (Severity::Warning, "ask the program's maker whether it translates addresses"),
    };
    let affects = "Services are translated in connect(2): the proxy sees the endpoint that was chosen, and routes by Service do not apply";
    Conflict::of_setting(ConflictId::H5, severity, shown(program), affects, advice)
}

fn masquerade(program: &BpfProgram) -> Conflict {
    Conflict::warning(
        ConflictId::H3,
        shown(program),
        "it may give probes another source address, so that pods cannot tell them",
        "except link-local addresses from cilium's masquerading (masqLinkLocal=false)",
    )
}

fn on_packets(program: &BpfProgram) -> Conflict {
    Conflict::warning(
        ConflictId::P4,
        shown(program),
        "it may drop or redirect packets that no rule sees",
        "ask the program's maker what it does",
    )
}
