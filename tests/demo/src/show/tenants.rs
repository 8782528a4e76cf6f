//! Tenants, shown.

use super::{Cell, Screen, Style, heads};
use crate::tenants::{TenantConnection, TenantReport};

impl Screen {
    /// What two tenants may do.
    pub(crate) fn tenants(self, report: &TenantReport) {
        let TenantReport { connections, granted_ms, audit, listed, problems, .. } = report;
        let said = |text: &str| match text {
            "connected" => Cell::new(text).styled(Style::Green),
            text => Cell::new(text).styled(Style::Yellow),
        };
        let row = |one: &TenantConnection| {
            let to = format!("{}:{}", one.to, one.port);
            vec![Cell::new(&one.from), Cell::new(&to), said(&one.before), said(&one.after)]
        };
        let heads = heads(&["FROM", "TO", "BEFORE THE GRANT", "AFTER IT"]);
        let rows: Vec<Vec<Cell>> = std::iter::once(heads).chain(connections.iter().map(row)).collect();
        self.table(&rows).iter().for_each(|line| self.print(line));
        self.line("cnictl tenants list");
        listed.lines().for_each(|line| self.line(&format!("  {}", self.paint(line, Style::Dim))));
        self.line("cnictl audit query");
        self.line(&format!("  {}", self.paint(&audit.to_string(), Style::Dim)));
        if problems.is_empty() {
            self.good(&format!("one port is open {granted_ms:.0} ms after the grant, and no other"));
        }
        self.problems(problems);
    }
}
