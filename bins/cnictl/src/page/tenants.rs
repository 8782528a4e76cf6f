//! Tenants: those of the node's page, and the one of a pod.

use anyhow::Result;
use rundir::policy::TenantStateReport;

use super::html::Html;
use crate::configuration::{AGENT_PATIENCE, ConfigurationArgs};

/// Tenants that are shown, and namespaces of one.
const MOST_TENANTS: usize = 50;
const MOST_NAMES: usize = 8;

/// Tenants, whether their last change is in force, and what is wrong with them.
pub(super) fn table(tenants: &[TenantStateReport]) -> Html {
    let mut html = Html::default();
    if tenants.is_empty() {
        html.raw("<p class=\"none\">There is no tenant.</p>");
        return html;
    }
    html.raw("<table class=\"cards\"><thead><tr><th>Tenant</th><th>In force</th><th>Namespaces</th><th class=\"n\">Pods</th></tr></thead><tbody>");
    for tenant in tenants.iter().take(MOST_TENANTS) {
        let is_current = tenant.in_force == Some(tenant.generation);
        let (class, word) = match (is_current, &*tenant.enforcement) {
            (false, _) => ("soon", "not its last change"),
            (true, "enforce") => ("ok", "enforced"),
            (true, "audit") => ("dim", "tried out"),
            (true, _) => ("off", "off"),
        };
        let of = |state: &'static str| tenant.namespaces.iter().filter(move |claim| claim.state == state);
        let names: Vec<&str> = of("Member").map(|claim| &*claim.name).take(MOST_NAMES).collect();
        html.raw("<tr><td>")
            .text(&tenant.name)
            .raw("</td><td><i class=\"")
            .raw(class)
            .raw("\"></i>")
            .raw(word);
        html.raw("</td><td>").text(names.join(", "));
        if of("Member").count() > MOST_NAMES {
            html.raw(" and ").text(of("Member").count() - MOST_NAMES).raw(" more");
        }
        for claim in of("Refused").take(MOST_NAMES) {
            html.raw("<br><small>").text(&claim.name).raw(" is refused: tenant ").text(&claim.tenant);
            html.raw(" has it</small>");
        }
        for fault in tenant.faults.iter().take(MOST_NAMES) {
            html.raw("<br><small>").text(fault).raw("</small>");
        }
        html.raw("</td><td class=\"n\">").text(tenant.pods).raw("</td></tr>");
    }
    html.raw("</tbody></table>");
    if tenants.len() > MOST_TENANTS {
        html.raw("<p class=\"none\">").text(tenants.len() - MOST_TENANTS);
        html.raw(" more are not shown; see <code>cnictl tenants list</code>.</p>");
    }
    html
}

/// The tenant that has the pod's namespace, where tenants are enforced.
///
/// # Errors
/// The node's configuration cannot be used.
pub(super) fn of_pod(html: &mut Html, configuration: &ConfigurationArgs, namespace: &str) -> Result<()> {
    let Ok(report) = configuration.load()?.agent().policies(AGENT_PATIENCE) else { return Ok(()) };
    let Some(tenants) = report.tenants else { return Ok(()) };
    let has_it = |tenant: &&TenantStateReport| {
        tenant.namespaces.iter().any(|claim| claim.name == namespace && claim.state == "Member")
    };
    html.raw("<dl>");
    match tenants.iter().find(has_it) {
        Some(tenant) => {
            let is_current = tenant.in_force == Some(tenant.generation);
            let standing = if is_current { "in force" } else { "its last change is not in force" };
            html.row("Tenant", format!("{} ({}, {standing})", tenant.name, tenant.enforcement));
        }
        None => {
            html.row("Tenant", "none has this namespace");
        }
    }
    html.raw("</dl>");
    Ok(())
}

#[cfg(test)]
mod tests {
    use rundir::policy::TenantClaimReport;

    use super::*;

    #[test]
    fn tenants_are_shown_with_what_is_in_force_and_what_is_refused() {
        let claim = |name: &str, state: &str, tenant: &str| TenantClaimReport {
            name: name.to_owned(),
            state: state.to_owned(),
            tenant: tenant.to_owned(),
        };
        let tenant = |name: &str, in_force, claims| TenantStateReport {
            name: name.to_owned(),
            generation: 2,
            in_force,
            enforcement: "enforce".to_owned(),
            namespaces: claims,
            pods: 7,
            ..TenantStateReport::default()
        };
        let red = tenant("red", Some(2), vec![claim("red-<db>", "Member", "")]);
        let blue = tenant("blue", Some(1), vec![claim("red-db", "Refused", "red")]);
        let text = table(&[red.clone(), blue]).into_text();
        for part in [
            "<td>red</td><td><i class=\"ok\"></i>enforced</td><td>red-&lt;db&gt;</td><td class=\"n\">7</td>",
            "<td>blue</td><td><i class=\"soon\"></i>not its last change</td>",
            "red-db is refused: tenant red has it",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let many = table(&vec![red; 60]).into_text();
        assert!(many.contains("10 more are not shown") && many.len() < 10_000, "{} bytes", many.len());
    }
}
