//! Processes of the pod that are in the way.

use std::collections::BTreeSet;

use super::Found;
use super::view::NetnsView;
use crate::{Conflict, ConflictId, ObservedListener, ObservedProcess, Severity};

pub(super) fn find(view: &NetnsView<'_>, found: &mut Found) {
    listeners(view, found);
    let application = || view.observed.processes.iter().filter(|process| !process.proxy);
    for process in application() {
        runs_as_proxy(view, process, found);
    }
    let risky: BTreeSet<String> = application().filter(|process| process.net_admin).map(who).collect();
    for process in risky {
        found.add(Conflict::of_setting(
            ConflictId::P15,
            Severity::Info,
            format!("{process} has CAP_NET_ADMIN"),
            "it may change the pod's rules and routes at any time",
            "drop the capability, unless it needs it",
        ));
    }
}

/// The application listens on a port of the proxy.
fn listeners(view: &NetnsView<'_>, found: &mut Found) {
    let of_proxy = |listener: &&ObservedListener| view.proxy.ports.contains(&listener.port);
    for listener in view.observed.listeners.iter().filter(of_proxy) {
        let process = process_of(view, listener);
        if !is_application(view, listener, process) {
            continue;
        }
        let who = process.map_or_else(|| owner(listener), who);
        found.add(Conflict::of_setting(
            ConflictId::P16,
            Severity::Error,
            format!("{who} listens on port {}", listener.port),
            format!(
                "connections that are led to port {} come to the application instead of the proxy",
                listener.port
            ),
            "let the application listen on another port",
        ));
    }
}

fn process_of<'a>(view: &NetnsView<'a>, listener: &ObservedListener) -> Option<&'a ObservedProcess> {
    view.observed.processes.iter().find(|process| Some(process.pid) == listener.pid)
}

/// A process that is known says it; else its user does. The plan of ambient mode tells no user: there sockets of the proxy are of no
/// container of the pod. A transparent proxy may run as user 0 with its own group, which a socket does not tell.
fn is_application(
    view: &NetnsView<'_>,
    listener: &ObservedListener,
    process: Option<&ObservedProcess>,
) -> bool {
    match process {
        Some(process) => !process.proxy,
        None if view.proxy.uids.is_empty() => listener.container.is_some(),
        None => {
            let may_be_proxy =
                view.proxy.uids.contains(&listener.uid) || (view.proxy.tproxy && listener.uid == 0);
            !may_be_proxy
        }
    }
}

/// The application runs as the user or group whose packets are the proxy's.
fn runs_as_proxy(view: &NetnsView<'_>, process: &ObservedProcess, found: &mut Found) {
    let what = match process {
        _ if view.proxy.uids.contains(&process.uid) => format!("user {}", process.uid),
        _ if view.proxy.gids.contains(&process.gid) => format!("group {}", process.gid),
        _ => return,
    };
    found.add(Conflict::of_setting(
        ConflictId::P17,
        Severity::Error,
        format!("{} runs as {what}", who(process)),
        format!("rules of ours take everything of {what} for the proxy's, so that nothing of this process is captured"),
        "run the container as another user and group",
    ));
}

fn who(process: &ObservedProcess) -> String {
    let of = process.container.as_deref().map(|container| format!(" of container {container}"));
    format!("{} (pid {}){}", process.command, process.pid, of.unwrap_or_default())
}

fn owner(listener: &ObservedListener) -> String {
    let pid = listener.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let of = listener.container.as_deref().map(|container| format!(" of container {container}"));
    format!("uid {}{pid}{}", listener.uid, of.unwrap_or_default())
}
