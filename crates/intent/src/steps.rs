//! The order of the acts.
//!
//! A new pod, which the plugin announces, has no process yet: its rules come first, so that whatever fails later, nothing of it gets past them. A
//! pod that runs already has connections and probes, so its rules come last: from the first packet that they redirect on, there is somebody to take
//! it. On the way out redirects go first, and what translates open connections goes last: without it neither side hears of the other any more, nor
//! of an end.

use std::net::IpAddr;

use crate::act::Act;
use crate::have::{Have, Look, PodNetns, Probes, RedirectionMark, Rules, Ztunnel};

/// What is wanted of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// In the mesh.
    In {
        /// Its addresses; those that are known hold if there are none.
        addresses: Vec<IpAddr>,
    },
    /// In the mesh, as it is: its addresses and its annotation are followed, while nothing is asked of a ztunnel and rules stay.
    Held {
        /// Its addresses; those that are known hold if there are none.
        addresses: Vec<IpAddr>,
    },
    /// The rules that redirect are as planned, whatever else is missing.
    Verified,
    /// Connections are tracked as usual again: none is open any more that was before the rules.
    Tracked,
    /// In the mesh, and it cannot be: what it says of itself has to be true meanwhile.
    Refused {
        /// It is not meant to be taken in as it is, whatever its namespace has.
        for_good: bool,
    },
    /// It runs on outside of the mesh: its rules have to go.
    Out,
    /// Its containers have ended, or its sandbox is gone: the namespace goes by itself.
    Ended,
    /// The API server does not know it any more.
    Gone,
    /// The sandbox comes to nothing, or the way in has failed: as if it had never begun. The annotation is not touched, because neither the API
    /// server nor its absence may delay that.
    GivenUp,
}

/// Whether the pod has processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Birth {
    /// Not yet: a plugin announces it and waits. What only others read is left to the time after its answer.
    New,
    /// It has, or may have.
    Running,
}

/// The acts that lead from what a pod has to what is wanted; none where it has that. [`Act::Locate`] is the last of its plan: what comes after it
/// depends on what is found.
pub fn steps(want: &Want, have: &Have, birth: Birth) -> Vec<Act> {
    match want {
        Want::In { addresses } => into_mesh(addresses, have, birth),
        Want::Held { addresses } => held(addresses, have),
        Want::Verified => {
            let differs = have.look().is_some_and(|look| look != Look::AsPlanned);
            Vec::from_iter((have.namespace == PodNetns::Known && differs).then_some(Act::RepairRules))
        }
        Want::Tracked => {
            let is_strict = have.namespace == PodNetns::Known && have.strict;
            Vec::from_iter(is_strict.then_some(Act::RestoreTracking))
        }
        Want::Refused { for_good } => {
            let mark = have.true_mark().filter(|_| !for_good);
            Vec::from_iter((have.mark != mark).then_some(Act::Annotate(mark)))
        }
        Want::Out => out_of_mesh(have),
        Want::Ended => {
            let mut acts = off_the_node(have);
            acts.extend(unmarked(have));
            forgotten(have, acts)
        }
        Want::Gone => forgotten(have, off_the_node(have)),
        Want::GivenUp => {
            let inside = have.namespace == PodNetns::Known;
            let mut acts = Vec::from_iter((inside && have.strict).then_some(Act::RestoreTracking));
            acts.extend(off_the_node(have));
            acts.extend((inside && have.rules != Rules::None).then_some(Act::RemoveRules));
            forgotten(have, acts)
        }
    }
}

fn into_mesh(addresses: &[IpAddr], have: &Have, birth: Birth) -> Vec<Act> {
    if have.namespace != PodNetns::Known {
        return vec![Act::Locate];
    }
    let (mut acts, moves) = with_addresses(addresses, have);
    let rules = match have.rules {
        Rules::Capture(Look::AsPlanned) => None,
        // Capture that was lost is added again, and spares what was opened meanwhile.
        Rules::Capture(_) => Some(Act::RepairRules),
        _ => Some(Act::LoadRules { spare: birth == Birth::Running }),
    };
    let ztunnel = (have.ztunnel != Ztunnel::Taken).then_some(Act::TellZtunnel);
    let probes = (moves || have.probes != Probes::In).then_some(Act::AddProbes);
    let order = if birth == Birth::New || have.is_captured() {
        [rules, ztunnel, probes]
    } else {
        [probes, ztunnel, rules]
    };
    acts.extend(order.into_iter().flatten());
    let enabled = Some(RedirectionMark::Enabled);
    acts.extend((birth == Birth::Running && have.mark != enabled).then_some(Act::Annotate(enabled)));
    acts
}

/// The acts by which a pod takes its addresses, and whether they are others than before.
fn with_addresses(addresses: &[IpAddr], have: &Have) -> (Vec<Act>, bool) {
    let mut acts = Vec::new();
    let moves = !addresses.is_empty() && !have.has_addresses(addresses);
    if moves {
        acts.push(Act::TakeAddresses(addresses.to_vec()));
    }
    if !have.stale.is_empty() || moves && !have.addresses.is_empty() && have.probes != Probes::None {
        acts.push(Act::RemoveStaleProbes);
    }
    (acts, moves)
}

fn held(addresses: &[IpAddr], have: &Have) -> Vec<Act> {
    let (mut acts, moves) = with_addresses(addresses, have);
    acts.extend((moves || have.probes != Probes::In).then_some(Act::AddProbes));
    let complete = Have { probes: Probes::In, ..have.clone() }.is_complete();
    let enabled = Some(RedirectionMark::Enabled);
    acts.extend((complete && have.mark != enabled).then_some(Act::Annotate(enabled)));
    acts
}

fn out_of_mesh(have: &Have) -> Vec<Act> {
    let mut acts = Vec::from_iter(unmarked(have));
    let redirects = have.may_redirect();
    let translates = redirects || matches!(have.rules, Rules::Drain { .. });
    // Its rules redirect to ztunnel still: without that it would have no network at all. What is only suspected is not searched for.
    if have.namespace == PodNetns::Unknown && translates && have.rules != Rules::Maybe {
        acts.push(Act::Locate);
        return acts;
    }
    let inside = have.namespace == PodNetns::Known;
    acts.extend((inside && redirects).then_some(Act::Drain));
    acts.extend(without_probes(have));
    acts.extend((inside && translates).then_some(Act::Wait));
    acts.extend(without_ztunnel(have));
    acts.extend((inside && translates).then_some(Act::EndConnections));
    acts.extend((inside && have.rules != Rules::None).then_some(Act::RemoveRules));
    acts.extend((inside && have.strict).then_some(Act::RestoreTracking));
    acts.extend((inside && (have.entries || translates)).then_some(Act::ForgetEntries));
    forgotten(have, acts)
}

/// What the node and its ztunnels have.
fn off_the_node(have: &Have) -> Vec<Act> {
    without_probes(have).into_iter().chain(without_ztunnel(have)).collect()
}

fn without_probes(have: &Have) -> Option<Act> {
    (have.probes != Probes::None || !have.stale.is_empty()).then_some(Act::RemoveProbes)
}

fn without_ztunnel(have: &Have) -> Option<Act> {
    (have.ztunnel != Ztunnel::None).then_some(Act::RemoveFromZtunnel)
}

fn unmarked(have: &Have) -> Option<Act> {
    have.mark.is_some().then_some(Act::Annotate(None))
}

fn forgotten(have: &Have, mut acts: Vec<Act>) -> Vec<Act> {
    acts.extend(have.recorded.then_some(Act::Forget));
    acts
}
