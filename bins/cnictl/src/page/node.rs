//! The page of the node.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use rundir::pods::{ConflictsReport, PodReport, PodsReport};
use rundir::policy::{PolicyStateReport, TenantStateReport};
use rundir::recent::RecentReport;

use super::chart::{self, class_of};
use super::html::Html;
use super::tenants;
use crate::configuration::{AGENT_PATIENCE, ConfigurationArgs};
use crate::node::{NodeSummary, summary};
use crate::pods::{SelectArgs, Viewer, ago};

/// Pods that are shown; how many more there are is said.
const MOST_PODS: usize = 500;
/// How old what is known of the installation may be: programs are started for it.
const INSTALLATION_AGE: Duration = Duration::from_secs(60);

/// Makes it.
#[derive(Debug)]
pub(super) struct NodePage {
    configuration: ConfigurationArgs,
    name: String,
    installation: Mutex<Option<(Instant, NodeSummary)>>,
}

/// What is known now.
struct Known {
    pods: PodsReport,
    /// Who says it, for people, and why not the agent.
    evidence: String,
    recent: RecentReport,
    conflicts: ConflictsReport,
    policies: Option<PolicyStateReport>,
    installation: NodeSummary,
}

// === impl NodePage ===

impl NodePage {
    /// # Errors
    /// The node's configuration cannot be used.
    pub(super) fn new(configuration: ConfigurationArgs) -> Result<Self> {
        configuration.load()?;
        let name = crate::node::node_name().unwrap_or_else(|| "this node".to_owned()).trim().to_owned();
        Ok(Self { configuration, name, installation: Mutex::default() })
    }

    pub(super) fn configuration(&self) -> &ConfigurationArgs {
        &self.configuration
    }

    pub(super) fn title(&self) -> String {
        self.name.clone()
    }

    pub(super) fn html(&self) -> Html {
        match self.known() {
            Ok(known) => known.html(&self.name),
            Err(error) => super::html::message("Not known", &format!("{error:#}")),
        }
    }

    fn known(&self) -> Result<Known> {
        let agent = self.configuration.load()?.agent();
        let (pods, evidence) = match agent.pods(false, AGENT_PATIENCE) {
            Ok(report) => {
                let evidence = format!("told by the agent, version {}", report.version);
                (report, evidence)
            }
            // Without an agent the page costs a look at every pod.
            Err(_) => {
                let view = Viewer::new(&self.configuration, false, None)?.view(&SelectArgs::default())?;
                let evidence = view.evidence.line();
                (
                    PodsReport { pods: view.pods, synced: view.gaps.is_empty(), ..PodsReport::default() },
                    evidence,
                )
            }
        };
        Ok(Known {
            pods,
            evidence,
            recent: agent.recent(AGENT_PATIENCE).unwrap_or_default(),
            conflicts: agent.conflicts(AGENT_PATIENCE).unwrap_or_default(),
            policies: agent.policies(AGENT_PATIENCE).ok(),
            installation: self.installation(),
        })
    }

    fn installation(&self) -> NodeSummary {
        let mut kept = self.installation.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((at, known)) if at.elapsed() < INSTALLATION_AGE => known.clone(),
            _ => {
                let known = summary(&self.configuration);
                *kept = Some((Instant::now(), known.clone()));
                known
            }
        }
    }
}

// === impl Known ===

impl Known {
    fn html(&self, node: &str) -> Html {
        let mut html = Html::default();
        self.head(&mut html, node);
        html.raw("<main id=\"main\">");
        section(&mut html, "hour", "The last hour", None, &chart::html(&self.recent.samples));
        section(&mut html, "pods", "Pods", Some(self.pods.pods.len()), &self.pods());
        let there = || self.conflicts.conflicts.iter().filter(|conflict| !conflict.gone);
        section(&mut html, "conflicts", "Conflicts", Some(there().count()), &self.conflicts());
        section(&mut html, "policies", "Network policies", None, &self.policies());
        if let Some(tenants) = self.tenants() {
            section(&mut html, "tenants", "Tenants", Some(tenants.len()), &tenants::table(tenants));
        }
        section(&mut html, "node", "Installation", None, &self.installation());
        section(&mut html, "log", "The agent's log", None, &self.log());
        html.raw("</main><footer id=\"foot\">").text(&self.evidence);
        html.raw(" · <span class=\"live\">shown as it was when the page was loaded</span></footer>");
        html
    }

    fn head(&self, html: &mut Html, node: &str) {
        let wanted: Vec<&PodReport> = self.pods.pods.iter().filter(|pod| pod.is_wanted()).collect();
        let verified = wanted.iter().filter(|pod| pod.state == "verified").count();
        let bad = wanted.iter().filter(|pod| class_of(&pod.state) != "ok").count();
        let problems = self.installation.problems.len();
        let (class, word) = match (problems, bad) {
            (0, 0) => ("ok", "All pods that should be captured are."),
            (0, _) => ("soon", "Some pods are not known to be captured."),
            _ => ("bad", "Something is wrong on this node."),
        };
        html.raw("<header id=\"head\"><p class=\"kind\">Node</p><h1>")
            .text(node)
            .raw("</h1><p class=\"verdict\"><i class=\"");
        html.raw(class).raw("\"></i>").raw(word).raw("</p><ul class=\"sums\"><li><b>").text(verified);
        html.raw("</b><span>verified</span></li><li><b>")
            .text(bad)
            .raw("</b><span>not verified</span></li><li><b>");
        html.text(self.pods.pods.len() - wanted.len()).raw("</b><span>outside the mesh</span></li><li><b>");
        html.text(problems).raw("</b><span>problems</span></li></ul>");
        for (class, lines) in [("bad", &self.installation.problems), ("soon", &self.installation.warnings)] {
            for line in lines {
                html.raw("<p class=\"line\"><i class=\"").raw(class).raw("\"></i>").text(line).raw("</p>");
            }
        }
        html.raw(
            "<nav><a href=\"#hour\">Last hour</a><a href=\"#pods\">Pods</a><a href=\"#conflicts\">Conflicts</a>\
             <a href=\"#policies\">Policies</a>",
        );
        if self.tenants().is_some() {
            html.raw("<a href=\"#tenants\">Tenants</a>");
        }
        html.raw("<a href=\"#node\">Installation</a><a href=\"#log\">Log</a><a href=\"/rules\">Rules</a></nav></header>");
    }

    /// Where they are enforced.
    fn tenants(&self) -> Option<&[TenantStateReport]> {
        self.policies.as_ref()?.tenants.as_deref()
    }

    /// Those first that should be captured and are not known to be.
    fn pods(&self) -> Html {
        let mut html = Html::default();
        let mut pods: Vec<&PodReport> = self.pods.pods.iter().collect();
        let rank = |pod: &PodReport| match (pod.is_wanted(), class_of(&pod.state)) {
            (true, "bad") => 0,
            (true, "ok") => 3,
            (true, _) => 1,
            (false, _) if !pod.problem.is_empty() => 2,
            (false, _) => 4,
        };
        pods.sort_by_key(|pod| rank(pod));
        if pods.is_empty() {
            html.raw("<p class=\"none\">No pod is known on this node.</p>");
            return html;
        }
        html.raw("<table class=\"cards\"><thead><tr><th>Pod</th><th>State</th><th>Why</th><th class=\"n\">Verified</th></tr></thead><tbody>");
        pods.iter().take(MOST_PODS).for_each(|pod| pod_row(&mut html, pod));
        html.raw("</tbody></table>");
        if pods.len() > MOST_PODS {
            html.raw("<p class=\"none\">").text(pods.len() - MOST_PODS);
            html.raw(" more pods are not shown; see <code>cnictl pods</code>.</p>");
        }
        html
    }

    fn conflicts(&self) -> Html {
        let mut html = Html::default();
        let mut there = self.conflicts.conflicts.iter().filter(|conflict| !conflict.gone).peekable();
        if there.peek().is_none() {
            html.raw("<p class=\"none\">No rule or setting of others is known to be in the way.</p>");
            return html;
        }
        html.raw("<ul class=\"list\">");
        for conflict in there {
            let class = if conflict.severity == "error" { "bad" } else { "soon" };
            html.raw("<li><p><i class=\"").raw(class).raw("\"></i><b>").text(&conflict.id).raw("</b> ");
            html.text(&conflict.affects).raw("</p><small>");
            match &conflict.pod {
                Some(pod) => html.text(pod),
                None => html.raw("the node"),
            };
            if !conflict.culprit.is_empty() {
                html.raw(" · by ").text(&conflict.culprit);
            }
            html.raw("</small>");
            if !conflict.foreign.is_empty() {
                html.raw("<div class=\"rule\"><code>").text(&conflict.foreign).raw("</code></div>");
            }
            if !conflict.advice.is_empty() {
                html.raw("<p>").text(&conflict.advice).raw("</p>");
            }
            html.raw("</li>");
        }
        html.raw("</ul>");
        html
    }

    fn policies(&self) -> Html {
        let mut html = Html::default();
        let Some(report) = &self.policies else {
            html.raw("<p class=\"none\">Not known: the agent does not say.</p>");
            return html;
        };
        html.raw("<dl>").row("In force", report.standing.name());
        if !report.problem.is_empty() {
            html.row("Problem", &report.problem);
        }
        if !report.points.is_empty() {
            let guarded = report.points.iter().filter(|point| point.is_guarded).count();
            html.row(
                "Pods",
                format!(
                    "{} with a place of enforcement, {guarded} guarded until their rules are there",
                    report.points.len()
                ),
            );
        }
        let denied: u64 = report.denied.values().sum();
        html.row("Denied", format!("{denied} packets since the agent was started")).raw("</dl>");
        html
    }

    fn installation(&self) -> Html {
        let mut html = Html::default();
        html.raw("<dl>");
        for (name, text) in &self.installation.rows {
            html.row(name, text);
        }
        html.raw("</dl>");
        html
    }

    fn log(&self) -> Html {
        let mut html = Html::default();
        if self.recent.log.is_empty() {
            html.raw("<p class=\"none\">The agent tells no lines.</p>");
            return html;
        }
        html.raw("<div class=\"log\" tabindex=\"0\" role=\"log\" aria-label=\"The last lines\">");
        for line in &self.recent.log {
            let is = |word: &str| line.split(['\t', ' ', '"']).take(8).any(|part| part == word);
            let class = match (is("error") || is("fatal"), is("warn")) {
                (true, _) => "bad",
                (_, true) => "soon",
                _ => "",
            };
            html.raw("<div class=\"").raw(class).raw("\">").text(line.replace('\t', "  ")).raw("</div>");
        }
        html.raw("</div>");
        html
    }
}

fn section(html: &mut Html, id: &'static str, title: &'static str, count: Option<usize>, content: &Html) {
    html.raw("<section id=\"").raw(id).raw("\"><h2>").raw(title);
    if let Some(count) = count {
        html.raw(" <small>").text(count).raw("</small>");
    }
    html.raw("</h2>").part(content).raw("</section>");
}

fn pod_row(html: &mut Html, pod: &PodReport) {
    let (class, state) = match (pod.is_wanted(), &*pod.state) {
        (true, "") => ("dim", "not known"),
        (true, state) => (class_of(state), state),
        (false, _) => ("off", "outside"),
    };
    html.raw("<tr><td><a href=\"/pod/").segment(&pod.namespace).raw("/").segment(&pod.name).raw("\"><small>");
    html.text(&pod.namespace)
        .raw("/</small>")
        .text(&pod.name)
        .raw("</a></td><td><i class=\"")
        .raw(class)
        .raw("\"></i>");
    html.text(state);
    if !pod.reason.is_empty() {
        html.raw(" <small>").text(&pod.reason).raw("</small>");
    }
    html.raw("</td><td>")
        .text(if pod.problem.is_empty() { &pod.decision } else { &pod.problem })
        .raw("</td><td class=\"n\">");
    if let Some(at) = pod.last_verified {
        html.text(ago(at));
    }
    html.raw("</td></tr>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(pods: Vec<PodReport>) -> Known {
        Known {
            pods: PodsReport { pods, ..PodsReport::default() },
            evidence: String::new(),
            recent: RecentReport {
                log: vec!["</div><script>1</script>".to_owned()],
                ..RecentReport::default()
            },
            conflicts: ConflictsReport::default(),
            policies: None,
            installation: NodeSummary::default(),
        }
    }

    fn pod(name: &str, wanted: &str, state: &str) -> PodReport {
        PodReport {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            wanted: wanted.to_owned(),
            state: state.to_owned(),
            decision: "captured through its sidecar".to_owned(),
            last_verified: Some(1.0),
            ..PodReport::default()
        }
    }

    #[test]
    fn what_is_wrong_comes_first_and_names_are_text() {
        let pods = vec![
            pod("a<img src=x onerror=alert(1)>", "sidecar", "verified"),
            pod("b", "none", ""),
            pod("c", "ambient", "drifted"),
        ];
        let text = known(pods).html("n<1>").into_text();
        assert!(
            !text.contains("<img") && !text.contains("<script>") && text.contains("n&lt;1&gt;"),
            "{text}"
        );
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("</small>c</a>") < at("</small>a&lt;img") && at("</small>a&lt;img") < at("</small>b</a>"));
    }

    #[test]
    fn a_node_of_250_pods_takes_60_kilobytes_and_one_of_5000_shows_500() {
        let pods =
            |count: usize| (0..count).map(|n| pod(&format!("web-{n}"), "sidecar", "verified")).collect();
        let page =
            |count: usize| super::super::html::document("n", "0", &known(pods(count)).html("n")).into_text();
        let of_250 = page(250).len();
        assert!(of_250 <= 60_000, "{of_250} bytes");
        let of_5000 = page(5000);
        assert_eq!(of_5000.matches("<tr><td><a").count(), MOST_PODS);
        assert!(of_5000.contains("4500 more pods are not shown"));
    }
}
