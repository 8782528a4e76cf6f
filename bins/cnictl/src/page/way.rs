//! Pictures of one pod: a packet's way through the hooks, and the policies around it.

use super::html::Html;
use crate::explain::LiveExplanation;
use crate::policy::PolicySide;

/// Size of a box of a way, and of the space between two.
const BOX: f64 = 104.0;
const SPACE: f64 = 28.0;
/// Policies that are drawn on each side; how many more there are is said.
const MOST: usize = 6;
/// Characters of a policy's name that have room in its box.
const ROOM: usize = 26;

/// A packet's way: where it begins, each hook, and what becomes of it; below that the rules that match, hook by hook.
pub(super) fn packet(title: &'static str, first: &'static str, way: &LiveExplanation) -> Html {
    let mut html = Html::default();
    let (class, end) = match way.verdict.action {
        "captured" => ("ok", "proxy"),
        "delivered" | "bypass" => ("soon", "past the proxy"),
        "dropped" => ("bad", "dropped"),
        _ => ("dim", "unknown"),
    };
    html.raw("<h3>").raw(title).raw("</h3><p class=\"flow\">").text(&way.flow).raw("</p>");
    let steps = way.hooks.len() + 2;
    let width = steps as f64 * (BOX + SPACE) - SPACE + 2.0;
    html.raw("<div class=\"wide\"><svg class=\"way\" role=\"img\" viewBox=\"0 0 ")
        .number(width)
        .raw(" 62\" width=\"");
    html.number(width).raw("\" height=\"62\"><title>").text(&way.verdict.text).raw("</title>");
    draw_step(&mut html, 0, "start", first, "");
    for (index, hook) in way.hooks.iter().enumerate() {
        let decides = hook.rules.iter().any(|rule| !rule.verdict.is_empty());
        let below = match hook.rules.len() {
            0 => "no rule matches".to_owned(),
            1 => "1 rule".to_owned(),
            count => format!("{count} rules"),
        };
        draw_step(&mut html, index + 1, if decides { "acts" } else { "hook" }, hook.hook, &below);
    }
    let port = way.verdict.port.map_or_else(String::new, |port| format!("port {port}"));
    draw_step(&mut html, steps - 1, class, end, &port);
    html.raw("</svg></div><p class=\"verdict\"><i class=\"")
        .raw(class)
        .raw("\"></i>")
        .text(&way.verdict.text);
    html.raw("</p><ol class=\"hooks\">");
    for hook in &way.hooks {
        html.raw("<li><b>").text(hook.hook).raw("</b> <span>").text(&hook.from).raw(" → ").text(&hook.to);
        if hook.mark != 0 {
            html.raw(", mark ").text(format!("{:#x}", hook.mark));
        }
        html.raw("</span>");
        for rule in &hook.rules {
            html.raw("<div class=\"rule\"><code>")
                .text(&rule.text)
                .raw("</code><small>")
                .text(&rule.table)
                .raw(" ");
            html.text(&rule.chain);
            if let Some(handle) = rule.handle {
                html.raw(" handle ").text(handle);
            }
            match (&rule.why, rule.foreign) {
                (_, true) => html.raw(" · <em class=\"bad\">of others</em>"),
                (Some(why), _) if !why.is_empty() => html.raw(" · ").text(why),
                _ => &mut html,
            };
            html.raw("</small></div>");
        }
        html.raw("</li>");
    }
    html.raw("</ol>");
    html
}

/// A box, and the arrow that leads to it.
fn draw_step(html: &mut Html, index: usize, class: &'static str, text: &str, below: &str) {
    let x = 1.0 + index as f64 * (BOX + SPACE);
    if index > 0 {
        html.raw("<path class=\"arrow\" d=\"M").number(x - SPACE + 3.0).raw(" 31h").number(SPACE - 9.0);
        html.raw("m-5-4l5 4-5 4\"/>");
    }
    html.raw("<rect class=\"box ").raw(class).raw("\" x=\"").number(x).raw("\" y=\"9\" width=\"").number(BOX);
    html.raw("\" height=\"44\" rx=\"6\"/><text class=\"name\" x=\"").number(x + BOX / 2.0).raw("\" y=\"");
    html.raw(if below.is_empty() { "35" } else { "28" }).raw("\">").text(text).raw("</text>");
    if !below.is_empty() {
        html.raw("<text class=\"below\" x=\"")
            .number(x + BOX / 2.0)
            .raw("\" y=\"43\">")
            .text(below)
            .raw("</text>");
    }
}

/// The pod in the middle, what comes in on the left, what goes out on the right.
pub(super) fn policies(pod: &str, ingress: &PolicySide, egress: &PolicySide) -> Html {
    let mut html = Html::default();
    let rows = ingress.policies.len().max(egress.policies.len()).clamp(1, MOST + 1);
    let height = rows as f64 * 34.0 + 22.0;
    html.raw("<div class=\"wide\"><svg class=\"way\" role=\"img\" viewBox=\"0 0 720 ").number(height);
    html.raw("\" width=\"720\" height=\"").number(height).raw("\"><title>Policies that select ").text(pod);
    html.raw("</title><rect class=\"box start\" x=\"295\" y=\"").number(height / 2.0 - 24.0);
    html.raw("\" width=\"130\" height=\"48\" rx=\"6\"/><text class=\"name\" x=\"360\" y=\"")
        .number(height / 2.0 + 4.0);
    html.raw("\">").text(cut(pod.rsplit('/').next().unwrap_or(pod), 17)).raw("</text>");
    draw_side(&mut html, ingress, height, 0.0, "M 202 ");
    draw_side(&mut html, egress, height, 520.0, "M 518 ");
    html.raw("</svg></div>");
    html
}

fn draw_side(html: &mut Html, side: &PolicySide, height: f64, x: f64, edge: &'static str) {
    let more = side.policies.len().saturating_sub(MOST);
    let mut names: Vec<(String, &'static str)> =
        side.policies.iter().take(MOST).map(|name| (cut(name, ROOM), "acts")).collect();
    if more > 0 {
        names.push((format!("and {more} more"), "hook"));
    }
    if names.is_empty() {
        let from = if x == 0.0 { "everybody may come in" } else { "may go everywhere" };
        names.push((from.to_owned(), "soon"));
    }
    let top = (height - names.len() as f64 * 34.0) / 2.0;
    for (index, (name, class)) in names.iter().enumerate() {
        let y = top + index as f64 * 34.0;
        html.raw("<rect class=\"box ")
            .raw(class)
            .raw("\" x=\"")
            .number(x + 1.0)
            .raw("\" y=\"")
            .number(y + 3.0);
        html.raw("\" width=\"198\" height=\"28\" rx=\"6\"/><text class=\"name\" x=\"")
            .number(x + 100.0)
            .raw("\" y=\"");
        html.number(y + 21.0)
            .raw("\">")
            .text(name)
            .raw("</text><path class=\"arrow\" d=\"")
            .raw(edge)
            .number(y + 17.0);
        // From a policy to the pod, or from the pod to it.
        html.raw(if x == 0.0 { "L 293 " } else { "L 427 " }).number(height / 2.0).raw("\"/>");
    }
}

fn cut(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_policies_are_counted_and_names_are_text() {
        let side = |count: usize| PolicySide {
            isolated: count > 0,
            policies: (0..count).map(|n| format!("shop/<b>allow-{n}-with-a-very-long-name")).collect(),
            ..PolicySide::default()
        };
        let text = policies("shop/web", &side(9), &side(0)).into_text();
        assert!(text.contains("and 3 more") && text.contains("may go everywhere"), "{text}");
        assert!(!text.contains("<b>") && text.contains("shop/&lt;b&gt;allow-0-with-a-ve…"), "{text}");
    }
}
