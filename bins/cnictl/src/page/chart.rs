//! Pods by state over the last hour, as a picture and as a table.

use std::collections::BTreeSet;

use rundir::recent::{MAX_SAMPLES, PodsSample};

use super::html::Html;
use crate::pods::ago;

/// Size of the picture, in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 140.0;
/// Part of a minute's width that is left between two.
const GAP: f64 = 0.25;

/// What a state looks like.
pub(super) fn class_of(state: &str) -> &'static str {
    match state {
        "verified" => "ok",
        "draining" | "starting" | "unacknowledged" => "soon",
        "drifted" | "contended" => "bad",
        "" => "off",
        _ => "dim",
    }
}

/// The states in the order in which they are stacked: verified below, then as bad as they are.
fn states(samples: &[PodsSample]) -> Vec<&str> {
    let all: BTreeSet<&str> =
        samples.iter().flat_map(|sample| sample.states.keys().map(String::as_str)).collect();
    let rank = |state: &&str| match class_of(state) {
        "ok" => 0,
        "soon" => 1,
        "dim" => 2,
        _ => 3,
    };
    let mut all: Vec<&str> = all.into_iter().collect();
    all.sort_by_key(rank);
    all
}

/// The picture, and the last samples as a table for who does not see it.
pub(super) fn html(samples: &[PodsSample]) -> Html {
    let mut html = Html::default();
    if samples.is_empty() {
        html.raw("<p class=\"none\">Not known: the agent does not say.</p>");
        return html;
    }
    let most = samples.iter().map(|sample| sample.states.values().sum::<usize>()).max().unwrap_or_default();
    if most == 0 {
        html.raw("<p class=\"none\">No sample of the last hour has a pod that should be captured.</p>");
        return html;
    }
    let states = states(samples);
    html.raw("<figure><svg viewBox=\"0 0 720 168\" role=\"img\" aria-labelledby=\"hour-title\"><title id=\"hour-title\">");
    html.text(format!("Pods by state in each of the last {} minutes, at most {most}", samples.len()));
    html.raw("</title>");
    for (y, count) in [(0.0, most), (HEIGHT / 2.0, most / 2)] {
        html.raw("<line class=\"grid\" x1=\"0\" x2=\"720\" y1=\"").number(y).raw("\" y2=\"").number(y);
        html.raw("\"/><text class=\"axis\" x=\"0\" y=\"")
            .number(y + 12.0)
            .raw("\">")
            .text(count)
            .raw("</text>");
    }
    let step = WIDTH / MAX_SAMPLES as f64;
    let first = MAX_SAMPLES.saturating_sub(samples.len());
    for (index, sample) in samples.iter().enumerate() {
        let mut top = HEIGHT;
        for state in &states {
            let Some(count) = sample.states.get(*state).filter(|count| **count > 0) else { continue };
            let height = HEIGHT * *count as f64 / most as f64;
            top -= height;
            html.raw("<rect class=\"")
                .raw(class_of(state))
                .raw("\" x=\"")
                .number((first + index) as f64 * step);
            html.raw("\" y=\"").number(top).raw("\" width=\"").number(step * (1.0 - GAP)).raw("\" height=\"");
            html.number(height).raw("\"/>");
        }
    }
    html.raw("<line class=\"base\" x1=\"0\" x2=\"720\" y1=\"140\" y2=\"140\"/>");
    html.raw("<text class=\"axis\" x=\"0\" y=\"160\">an hour ago</text><text class=\"axis end\" x=\"720\" y=\"160\">now</text></svg>");
    let last = samples.last();
    html.raw("<figcaption>");
    for state in &states {
        let count = last.and_then(|sample| sample.states.get(*state)).copied().unwrap_or_default();
        html.raw("<span class=\"key\"><i class=\"")
            .raw(class_of(state))
            .raw("\"></i>")
            .text(state)
            .raw(" <b>");
        html.text(count).raw("</b></span>");
    }
    html.raw("</figcaption></figure>");
    table(&mut html, samples, &states);
    html
}

/// Every fifth sample is enough to read.
fn table(html: &mut Html, samples: &[PodsSample], states: &[&str]) {
    html.raw("<details><summary>As a table</summary><table><thead><tr><th>Minute</th>");
    for state in states {
        html.raw("<th class=\"n\">").text(state).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for sample in samples.iter().rev().step_by(5) {
        html.raw("<tr><td>").text(ago(sample.at)).raw("</td>");
        for state in states {
            html.raw("<td class=\"n\">")
                .text(sample.states.get(*state).copied().unwrap_or_default())
                .raw("</td>");
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table></details>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_there_are_pods() {
        let sample = |at: f64, states: &[(&str, usize)]| PodsSample {
            at,
            states: states.iter().map(|(state, count)| ((*state).to_owned(), *count)).collect(),
        };
        let text = html(&[sample(0.0, &[("verified", 3), ("drifted", 1)]), sample(60.0, &[("verified", 2)])])
            .into_text();
        assert!(
            text.contains("<rect class=\"ok\" x=\"696\" y=\"35\" width=\"9\" height=\"105\"/>"),
            "{text}"
        );
        assert!(text.contains("<rect class=\"bad\" x=\"696\" y=\"0\" width=\"9\" height=\"35\"/>"), "{text}");
        assert!(text.contains("<rect class=\"ok\" x=\"708\" y=\"70\" width=\"9\" height=\"70\"/>"), "{text}");
        assert!(html(&[]).into_text().contains("the agent does not say"));
        assert!(html(&[PodsSample::default()]).into_text().contains("No sample of"));
        let hostile = html(&[sample(0.0, &[("<script>", 1)])]).into_text();
        assert!(!hostile.contains("<script>"), "{hostile}");
    }
}
