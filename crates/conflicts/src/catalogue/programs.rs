//! Programs that the kernel runs beside rules.

use super::Found;
use super::view::NetnsView;
use crate::{BpfProgram, Conflict, ConflictId, LookedAt, NetnsScope, Severity};

/// What the names of cilium's programs begin with.
const CILIUM: &str = "cil_";

pub(super) fn find(view: &NetnsView<'_>, found: &mut Found) {
    let all = [("connect(2)", &view.observed.programs), ("packets", &view.observed.filters)];
    for (on, looked) in all {
        match looked {
            LookedAt::Found(programs) => {
                programs.iter().for_each(|program| judge(view, program, found));
            }
            LookedAt::Not(why) => {
                found.not_looked_at.push(format!("programs that the kernel runs on {on}: {why}"));
            }
        }
    }
    let with_xdp = view.observed.links.iter().filter_map(|link| Some((link, link.xdp?)));
    for (link, id) in with_xdp.filter(|_| view.observed.scope == NetnsScope::Pod) {
        let (attached, object) = ("xdp".to_owned(), link.name.clone());
        found.add(on_packets(&BpfProgram { attached, object, name: String::new(), id }));
    }
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
