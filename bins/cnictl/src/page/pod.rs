//! The page of one pod: what is decided and known, its rules as the kernel has them now, a packet's way through them, its policies.

use anyhow::Result;
use ruleset::listed::ListedTable;
use rundir::pods::PodReport;

use super::chart::class_of;
use super::html::Html;
use super::{tenants, way};
use crate::configuration::ConfigurationArgs;
use crate::explain::{LiveExplanation, parse_packet};
use crate::pods::{LookedPod, NodeProcesses, SelectArgs, Viewer, ago};
use crate::policy::policies_of;

/// The packet that a pod sends: to an address that is nobody's.
const OUT: &str = "out:203.0.113.9:443";
/// The packet that it gets.
const IN: &str = "in::8080";
/// Rules that are shown of a chain; how many more there are is said.
const MOST_RULES: usize = 200;

/// The page; nothing where no such pod is known.
///
/// # Errors
/// Nothing can be looked at, or several pods have the name.
pub(super) fn html(configuration: &ConfigurationArgs, namespace: &str, name: &str) -> Result<Option<Html>> {
    let viewer = Viewer::new(configuration, false, None)?;
    let select = SelectArgs::named(&format!("{namespace}/{name}"), None);
    let Ok(looked) = viewer.look_at_one(&select)? else { return Ok(None) };
    // What the agent knows besides: its history, and what only it hears.
    let told = viewer.view(&select)?.pods.into_iter().next();
    let mut html = Html::default();
    head(&mut html, told.as_ref().unwrap_or(&looked.report), &looked.report);
    html.raw("<main id=\"main\">");
    html.raw("<section id=\"way\"><h2>A packet's way</h2>");
    ways(&mut html, &looked);
    html.raw("</section><section id=\"policies\"><h2>Network policies and tenant</h2>");
    policies(&mut html, configuration, &looked.report);
    tenants::of_pod(&mut html, configuration, namespace)?;
    html.raw("</section>");
    differences(&mut html, &looked);
    html.raw("<section id=\"rules\"><h2>Rules in its network namespace</h2>");
    match &looked.observed {
        Some(observed) => rules(&mut html, &observed.tables),
        None => none(&mut html, &format!("Not read: {}", looked.report.problem)),
    }
    html.raw("</section></main><footer id=\"foot\">read from the kernel now · <span class=\"live\">shown as it was when the page was loaded</span></footer>");
    Ok(Some(html))
}

fn head(html: &mut Html, told: &PodReport, looked: &PodReport) {
    let (class, state) = match (told.is_wanted(), &*told.state) {
        (true, "") => ("dim", "not known to be captured"),
        (true, state) => (class_of(state), state),
        (false, _) => ("off", "outside the mesh"),
    };
    html.raw("<header id=\"head\"><p class=\"kind\"><a href=\"/\">Node</a> / Pod</p><h1><small>")
        .text(&told.namespace);
    html.raw("/</small>")
        .text(&told.name)
        .raw("</h1><p class=\"verdict\"><i class=\"")
        .raw(class)
        .raw("\"></i>")
        .text(state);
    html.raw("</p>");
    if !told.problem.is_empty() {
        html.raw("<p>").text(&told.problem).raw("</p>");
    }
    html.raw("<dl>").row("Decided", format!("{} ({})", told.decision, told.decided_by));
    let both = [&*told.mode, &*told.backend].into_iter().filter(|text| !text.is_empty());
    let mut some = |name: &'static str, text: String| {
        if !text.is_empty() {
            html.row(name, text);
        }
    };
    some("How", both.collect::<Vec<_>>().join(", "));
    some("Last verified", told.last_verified.map(ago).unwrap_or_default());
    some("Written by", told.culprit.clone());
    some("Conflicts", told.conflicts.join(", "));
    let listens = |listens: bool| if listens { "listens" } else { "does not listen" };
    some("Proxy", looked.listening.map(listens).unwrap_or_default().to_owned());
    some("Addresses", looked.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    some("Namespace", looked.netns.clone());
    some("Uid", told.uid.clone());
    html.raw("</dl></header>");
}

fn ways(html: &mut Html, looked: &LookedPod) {
    let drawn = || -> Result<[Html; 2]> {
        let processes = NodeProcesses::read()?;
        let way = |text: &str| {
            let request = parse_packet(text).map_err(anyhow::Error::msg)?;
            LiveExplanation::of_request(looked, &request, &processes)
        };
        let (sent, got) = (way(OUT)?, way(IN)?);
        Ok([
            way::packet("Sent by the application", "application", &sent),
            way::packet("Sent to the pod", "network", &got),
        ])
    };
    match drawn() {
        Ok([sent, got]) => {
            html.part(&sent).part(&got);
        }
        Err(error) => none(html, &format!("{error:#}")),
    }
}

fn policies(html: &mut Html, configuration: &ConfigurationArgs, pod: &PodReport) {
    match policies_of(configuration, &pod.namespace, &pod.name) {
        Ok(Some([ingress, egress])) => {
            html.part(&way::policies(&pod.pod().to_string(), &ingress, &egress)).raw("<dl>");
            for (name, side) in [("Comes in", ingress), ("Goes out", egress)] {
                let what = if side.isolated { "what these policies allow: " } else { "everything" };
                let point = if side.point.is_empty() {
                    String::new()
                } else {
                    format!("; enforced at: {}", side.point)
                };
                let denied =
                    side.denied.map_or_else(String::new, |denied| format!("; {denied} packets denied"));
                html.row(name, format!("{what}{}{point}{denied}", side.policies.join(", ")));
            }
            html.raw("</dl>");
        }
        Ok(None) => none(html, "No policy can be about this pod: it has the node's network, or has ended."),
        Err(error) => none(html, &format!("{error:#}")),
    }
}

fn none(html: &mut Html, text: &str) {
    html.raw("<p class=\"none\">").text(text).raw("</p>");
}

fn differences(html: &mut Html, looked: &LookedPod) {
    let conflicts = looked.conflicts.iter().flat_map(|conflicts| &conflicts.conflicts);
    html.raw("<section id=\"drift\"><h2>Plan against kernel</h2>");
    if looked.report.drift.is_empty() {
        let as_planned = looked.observed.is_some() && looked.captured.is_some();
        html.raw(match as_planned {
            true => "<p><i class=\"ok\"></i>What is there is what is planned.</p>",
            false => "<p class=\"none\">Nothing is compared: no plan, or no namespace.</p>",
        });
    } else {
        html.raw("<ul class=\"list\">");
        for line in &looked.report.drift {
            html.raw("<li><i class=\"bad\"></i>").text(line).raw("</li>");
        }
        html.raw("</ul>");
    }
    for conflict in conflicts {
        html.raw("<p><i class=\"soon\"></i><b>")
            .text(&conflict.id)
            .raw("</b> ")
            .text(&conflict.affects)
            .raw("</p>");
    }
    html.raw("</section>");
}

/// All rules that are there, ours with their reasons.
pub(super) fn rules(html: &mut Html, tables: &[ListedTable]) {
    let mut tables: Vec<&ListedTable> = tables.iter().filter(|table| !table.chains.is_empty()).collect();
    tables.sort_by_key(|table| !table.ours);
    if tables.is_empty() {
        html.raw("<p class=\"none\">There is no rule.</p>");
    }
    for table in tables {
        let whose = if table.ours { "" } else { " · of others" };
        for chain in &table.chains {
            html.raw("<details");
            html.raw(if table.ours && !chain.rules.is_empty() { " open" } else { "" });
            html.raw("><summary><b>").text(&table.name).raw("</b> ").text(&chain.name);
            if let Some(base) = &chain.base {
                html.raw(" <small>")
                    .text(base.kind.name())
                    .raw(" ")
                    .text(base.hook.name())
                    .raw(", priority ");
                html.text(base.priority).raw("</small>");
            }
            html.raw(" <small>· ").text(chain.rules.len());
            html.raw(if chain.rules.len() == 1 { " rule" } else { " rules" })
                .raw(whose)
                .raw("</small></summary>");
            html.raw("<table class=\"rules\"><thead><tr><th>Rule</th><th>Why</th><th class=\"n\">Handle</th></tr></thead><tbody>");
            for rule in chain.rules.iter().take(MOST_RULES) {
                html.raw("<tr><td><code>")
                    .text(rule)
                    .raw("</code></td><td>")
                    .text(rule.why.as_deref().unwrap_or_default());
                html.raw("</td><td class=\"n\">");
                if let Some(handle) = rule.handle {
                    html.text(handle);
                }
                html.raw("</td></tr>");
            }
            html.raw("</tbody></table>");
            if chain.rules.len() > MOST_RULES {
                html.raw("<p class=\"none\">")
                    .text(chain.rules.len() - MOST_RULES)
                    .raw(" more rules are not shown.</p>");
            }
            html.raw("</details>");
        }
    }
}
