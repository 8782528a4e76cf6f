//! The page of the node's own network namespace: its rules, and the sets by which kubelet's probes reach pods of ambient mode.

use anyhow::{Context as _, Result};
use capture::ambient::{OWNER, PROBES_V4, PROBES_V6};
use kernel::RuleStore;
use kernel::nft::Nftables;
use kernel::sets::{ProbeSets, SetMember};
use netns::InsideHost;
use ruleset::listed::ListedTable;
use ruleset::{Backend, TableKind};

use super::html::Html;
use super::pod;
use crate::node::{in_host, iptables_of_the_node};

/// Addresses that are shown.
const MOST_MEMBERS: usize = 500;
/// What tables and chains of ours begin with.
const OURS: &str = "istio-";

/// What was read.
struct HostRules {
    tables: Vec<ListedTable>,
    /// What could not be read, or not all of it.
    notes: Vec<String>,
    members: Vec<SetMember>,
}

/// The page.
///
/// # Errors
/// The namespace cannot be entered.
pub(super) fn html(node: &str) -> Result<Html> {
    let HostRules { tables, notes, members } = in_host(read).context("enter the node's network namespace")?;
    let mut html = Html::default();
    html.raw("<header id=\"head\"><p class=\"kind\"><a href=\"/\">Node</a> / Rules</p><h1>").text(node);
    html.raw("</h1></header><main id=\"main\"><section id=\"sets\"><h2>Probed addresses <small>");
    html.text(members.len()).raw("</small></h2>");
    set(&mut html, &members);
    html.raw("</section><section id=\"rules\"><h2>Rules in the node's network namespace</h2>");
    for note in &notes {
        html.raw("<p><i class=\"soon\"></i>").text(note).raw("</p>");
    }
    pod::rules(&mut html, &tables);
    html.raw("</section></main><footer id=\"foot\">read from the kernel now · <span class=\"live\">shown as it was when the page was loaded</span></footer>");
    Ok(html)
}

fn read(inside: &InsideHost<'_>) -> HostRules {
    let iptables = iptables_of_the_node();
    let stores: [(&str, &dyn RuleStore); 2] = [("nf_tables", &Nftables), ("iptables", &iptables)];
    let (mut tables, mut notes) = (Vec::new(), Vec::new());
    for (name, store) in stores {
        match store.others(inside.inside(), &[]) {
            Ok(listing) => {
                notes.extend(listing.notes.iter().map(|note| format!("{name}: {note}")));
                tables.extend(listing.tables);
            }
            Err(error) => notes.push(format!("{name}: {}", fault::chain(&error))),
        }
    }
    for table in &mut tables {
        table.ours = table.name.split(' ').any(|word| word.starts_with(OURS))
            || table.chains.iter().any(|chain| chain.name.starts_with(OURS));
    }
    let table = TableKind::Nat.nft_table(OWNER);
    let open = |backend, v6| {
        ProbeSets::open(inside, backend, &table, PROBES_V4, v6).and_then(|mut sets| sets.list())
    };
    // Sets that are not there hold nothing; that of IPv6 is not there where it is not captured.
    let of = |backend| open(backend, Some(PROBES_V6)).or_else(|_| open(backend, None)).unwrap_or_default();
    let members = [Backend::Nftables, Backend::Iptables].into_iter().flat_map(of).collect();
    HostRules { tables, notes, members }
}

fn set(html: &mut Html, members: &[SetMember]) {
    if members.is_empty() {
        html.raw("<p class=\"none\">There is no address in a set of ours.</p>");
        return;
    }
    html.raw("<table class=\"cards\"><thead><tr><th>Address</th><th>Uid of the pod</th></tr></thead><tbody>");
    for member in members.iter().take(MOST_MEMBERS) {
        html.raw("<tr><td>").text(member.ip).raw("</td><td>").text(&member.uid).raw("</td></tr>");
    }
    html.raw("</tbody></table>");
    if members.len() > MOST_MEMBERS {
        html.raw("<p class=\"none\">").text(members.len() - MOST_MEMBERS).raw(" more are not shown.</p>");
    }
}
