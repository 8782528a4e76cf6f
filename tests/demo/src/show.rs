//! How it looks: headings, tables, colours.

mod tenants;

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use crate::agent::AgentReport;
use crate::ambient::{AmbientReport, LoopReport};
use crate::checks::CheckReport;
use crate::connections::ConnectionReport;
use crate::drift::DriftReport;
use crate::pods::PodReport;
use crate::policy::{Explained, PolicedPod, PolicyReport};
use crate::removal::RemovalReport;

/// Prints what people read; nothing where a program reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    visible: bool,
    colours: bool,
}

/// SGR codes of ECMA-48.
#[derive(Debug, Clone, Copy)]
enum Style {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Columns of a usual terminal window on today's screens.
const WIDTH: usize = 120;

/// A cell of a table.
struct Cell {
    text: String,
    style: Option<Style>,
    right: bool,
}

impl Screen {
    /// With colours on a terminal, unless somebody objects (https://no-color.org).
    pub(crate) fn new(visible: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { visible, colours: wanted && std::io::stdout().is_terminal() }
    }

    fn paint(self, text: &str, style: Style) -> String {
        if self.colours { format!("\x1b[{}m{text}\x1b[0m", style as u8) } else { text.to_owned() }
    }

    fn print(self, text: &str) {
        if self.visible {
            // A reader that has seen enough, such as head, ends neither the demo nor its tidying up.
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// A heading with what it means.
    pub(crate) fn heading(self, title: &str, text: &str) {
        self.print(format!("\n{}  {text}", self.paint(title, Style::Bold)).trim_end());
    }

    pub(crate) fn line(self, text: &str) {
        self.print(&format!("  {text}"));
    }

    fn good(self, text: &str) {
        self.print(&format!("  {} {text}", self.paint("✓", Style::Green)));
    }

    fn bad(self, text: &str) {
        self.print(&format!("  {} {}", self.paint("✗", Style::Red), self.paint(text, Style::Red)));
    }

    /// Problems, one a line.
    pub(crate) fn problems(self, problems: &[String]) {
        for problem in problems {
            self.bad(problem);
        }
    }

    /// The lines of a table whose columns are as wide as their longest cell.
    fn table(self, rows: &[Vec<Cell>]) -> Vec<String> {
        let count = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(Cell::width).max();
        let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
        let line = |row: &Vec<Cell>| {
            let line = row.iter().zip(&widths).fold(String::new(), |mut line, (cell, &width)| {
                let padding = " ".repeat(width - cell.width());
                let text =
                    cell.style.map_or_else(|| cell.text.clone(), |style| self.paint(&cell.text, style));
                // Writing to a String cannot fail.
                let _ = if cell.right {
                    write!(line, "  {padding}{text}")
                } else {
                    write!(line, "  {text}{padding}")
                };
                line
            });
            line.trim_end().to_owned()
        };
        rows.iter().map(line).collect()
    }

    /// What the node agent did.
    pub(crate) fn agent(self, report: &AgentReport) {
        report.steps.iter().for_each(|step| self.good(step));
        self.problems(&report.problems);
    }

    /// The pods and what was decided about them.
    pub(crate) fn pods(self, pods: &[PodReport]) {
        let mut rows = vec![heads(&[
            "POD",
            "DECISION",
            "REASON",
            "BACKEND",
            ">RULES",
            ">bridge",
            ">MiB",
            ">istio-cni",
            ">MiB",
        ])];
        for pod in pods {
            let (decision, style) =
                if pod.captured { ("captured", Style::Green) } else { ("left alone", Style::Yellow) };
            let mut row = vec![
                Cell::new(&pod.pod),
                Cell::new(decision).styled(style),
                Cell::new(&pod.reason),
                Cell::new(pod.backend.as_deref().unwrap_or("–")),
                Cell::new(&pod.rules.to_string()).right(),
            ];
            for run in &pod.plugins {
                row.push(Cell::new(&format!("{:.1} ms", run.ms)).right());
                row.push(Cell::new(&format!("{:.1}", run.peak_mib)).right());
            }
            rows.push(row);
        }
        self.table(&rows).iter().for_each(|line| self.print(line));
        for pod in pods {
            self.problems(&pod.problems.iter().map(|p| format!("{}: {p}", pod.pod)).collect::<Vec<_>>());
        }
    }

    /// The connections, pod by pod.
    pub(crate) fn connections(self, pods: &[PodReport], connections: &[ConnectionReport]) {
        let mut rows = vec![heads(&["FROM", "TO", "REACHED", "ORIGINAL DESTINATION", "WHY"])];
        rows.extend(connections.iter().map(connection_row));
        let lines = self.table(&rows);
        self.print(&lines[0]);
        for pod in pods {
            let (name, about) = (self.paint(&pod.pod, Style::Bold), self.paint(&pod.about, Style::Dim));
            self.print(&format!("  {name}: {about}"));
            let own = connections.iter().zip(&lines[1..]).filter(|(connection, _)| connection.pod == pod.pod);
            own.for_each(|(_, line)| self.print(line));
        }
        self.transparent(connections);
        self.mismatches(connections);
    }

    /// A line for each connection that did something else than it has to.
    pub(crate) fn mismatches(self, connections: &[ConnectionReport]) {
        for connection in connections {
            for problem in &connection.problems {
                let ConnectionReport { pod, from, to, reached, .. } = connection;
                self.bad(&format!("{pod}: {from} → {to} reached {reached}, but {problem}"));
            }
        }
    }

    /// What TPROXY is for: the proxy's own socket has the addresses that the client used.
    fn transparent(self, connections: &[ConnectionReport]) {
        let inbound = || connections.iter().filter(|c| c.captured && c.original_destination == Some(c.to));
        let kept = inbound().find(|c| c.socket == Some(c.to));
        let changed =
            inbound().find(|c| c.socket.is_some_and(|socket| socket != c.to && socket.ip() == c.to.ip()));
        if let (Some(kept), Some(changed)) = (kept, changed)
            && let (Some(client), Some(socket)) = (kept.client, changed.socket)
        {
            self.print("");
            self.line(&format!(
                "TPROXY keeps both addresses: {} has a connection from {client} to {}.",
                kept.pod, kept.to
            ));
            self.line(&format!("REDIRECT changes one: the same to {} came to {socket}.", changed.pod));
        }
    }

    /// Only how many, and what was wrong.
    pub(crate) fn connections_summary(self, connections: &[ConnectionReport]) {
        let captured = connections.iter().filter(|connection| connection.captured).count();
        let right = connections.iter().filter(|connection| connection.problems.is_empty()).count();
        let all = connections.len();
        let text =
            format!("{right} of {all} as expected: {captured} reached the proxy, {} did not", all - captured);
        if right == all {
            self.good(&text);
        } else {
            self.bad(&text);
        }
        self.mismatches(connections);
    }

    /// What CHECK said.
    pub(crate) fn checks(self, report: &CheckReport) {
        let CheckReport { passed, pod, deleted, without, message, repaired, problems } = report;
        self.good(&format!("CHECK passes for {passed} pods"));
        self.line(&format!("  somebody deletes a rule of {pod} ({deleted})"));
        self.line(&format!("  and {} → {} reaches {}", without.from, without.to, without.reached));
        self.good(&format!("CHECK of {pod} fails:"));
        for line in wrap(message, WIDTH - 6) {
            self.line(&format!("    {}", self.paint(&line, Style::Yellow)));
        }
        let ConnectionReport { from, to, reached, .. } = repaired;
        self.good(&format!(
            "the next ADD repairs it: {from} → {to} reaches {reached}, and CHECK passes again"
        ));
        self.problems(problems);
    }

    /// The same in a line.
    pub(crate) fn checks_summary(self, report: &CheckReport) {
        let CheckReport { passed, pod, deleted, problems, .. } = report;
        if problems.is_empty() {
            self.good(&format!(
                "CHECK passes for {passed} pods; it fails for {pod} without {deleted}; ADD repairs that"
            ));
        }
        self.problems(problems);
    }

    /// What is left, which should be nothing.
    pub(crate) fn removal(self, report: &RemovalReport) {
        let RemovalReport { deleted, node_links, namespaces, folder, problems, .. } = report;
        if problems.is_empty() {
            self.good(&format!(
                "DEL of {deleted} pods left no address, no result and no interface but the node's own ({})",
                node_links.join(", ")
            ));
            self.good(&format!(
                "{namespaces} namespaces and {} are gone, no program of ours runs",
                folder.display()
            ));
        }
        self.problems(problems);
    }
}

impl Screen {
    /// The pod that enters the mesh and leaves it.
    pub(crate) fn ambient(self, report: &AmbientReport) {
        let heads = heads(&[
            "CONNECTIONS",
            ">BEFORE",
            ">ENTERING",
            ">IN THE MESH",
            ">LEAVING",
            ">AFTER",
            ">BY ZTUNNEL",
            ">CUT",
            ">FAILED",
        ]);
        let row = |one: &LoopReport| {
            let counts =
                [one.before, one.entering, one.inside, one.leaving, one.after, one.relayed, one.cut.len()];
            let failed = Cell::new(&one.failed.len().to_string()).right();
            let style = if one.failed.is_empty() { Style::Green } else { Style::Red };
            let mut row = vec![Cell::new(one.route.text())];
            row.extend(counts.map(|count| Cell::new(&count.to_string()).right()));
            row.push(failed.styled(style));
            row
        };
        let rows: Vec<Vec<Cell>> = std::iter::once(heads).chain(report.loops.iter().map(row)).collect();
        self.table(&rows).iter().for_each(|line| self.print(line));
        let AmbientReport { entered_ms, left_ms, probe_sources, namespaces, problems, held, .. } = report;
        if problems.is_empty() {
            let sources: Vec<String> = probe_sources.iter().map(ToString::to_string).collect();
            self.good(&format!(
                "in {entered_ms:.0} ms after the label, out {left_ms:.0} ms after its removal; every connection begun in between went through ztunnel"
            ));
            self.good(&format!(
                "{} connections were held open meanwhile, from before the mesh and from inside; {} questions on them had their answers",
                held.len(),
                held.iter().map(|one| one.answers).sum::<usize>()
            ));
            self.good(&format!(
                "probes went past it, from {} in the pod's eyes; nothing is left, {namespaces} namespaces are gone",
                sources.join(", ")
            ));
        }
        self.problems(problems);
        let (cut, failed) = (report.cut(), report.failed());
        self.line(&format!("  CUT {cut}  FAILED {failed}  with {}", report.backend.name()));
    }

    /// The pods whose rules somebody deleted.
    pub(crate) fn drift(self, report: &DriftReport) {
        let DriftReport { before, restored, after, problems, .. } = report;
        let verify = |text: &str| {
            self.line("cnictl verify");
            text.lines().for_each(|line| self.line(&format!("  {}", self.paint(line, Style::Dim))));
        };
        verify(before);
        for one in restored {
            let entered = "nsenter --net=/proc/…/ns/net ";
            self.line(&format!("somebody in {}, {} mode: {entered}{}", one.pod, one.mode, one.command));
            self.good(&format!("{:.0} ms later its {} rules are back", one.ms, one.rules));
            self.good(&format!("who it was: {}, by the agent's log and cnictl verify", one.culprit));
        }
        verify(after);
        self.problems(problems);
    }

    /// The pods that a policy selects.
    pub(crate) fn policy(self, report: &PolicyReport) {
        let PolicyReport { pods, explained, node_port_source, problems, .. } = report;
        let heads = heads(&[
            "POD",
            "MODE",
            "FIRST PACKET",
            "FROM THE NODE",
            "BY A NODE PORT",
            "CLIENT WITH THE LABEL",
        ]);
        let row = |pod: &PolicedPod| {
            let denied = |text: &str| Cell::new(text).styled(Style::Yellow);
            let reached = |text: &str| Cell::new(text).styled(Style::Green);
            vec![
                Cell::new(&pod.pod),
                Cell::new(pod.mode),
                denied(&pod.first),
                reached(&pod.kubelet),
                denied(&pod.node_port),
                reached(&pod.labelled),
            ]
        };
        let rows: Vec<Vec<Cell>> = std::iter::once(heads).chain(pods.iter().map(row)).collect();
        self.table(&rows).iter().for_each(|line| self.print(line));
        for Explained { command, text } in explained {
            self.line(command);
            text.lines().for_each(|line| self.line(&format!("  {}", self.paint(line, Style::Dim))));
        }
        if problems.is_empty() {
            let opened: Vec<String> = pods.iter().map(|pod| format!("{:.0} ms", pod.labelled_ms)).collect();
            self.good(&format!("open to the client {} after its label", opened.join(" and ")));
            self.good(&format!(
                "by a node port the world comes as the node, from {node_port_source}, and is told apart from it"
            ));
        }
        self.problems(problems);
    }

    /// The last lines.
    pub(crate) fn end(self, left: &[String], problems: usize, connections: usize, time: Duration) {
        self.problems(&left.iter().map(|what| format!("left on this machine: {what}")).collect::<Vec<_>>());
        if problems == 0 {
            self.print("");
            let connected = match connections {
                0 => String::new(),
                _ => format!("{connections} connections did what they have to, "),
            };
            let seconds = time.as_secs_f64();
            self.good(&format!("{connected}nothing of the demo is left on this machine; {seconds:.1} s"));
        }
    }
}

// === impl Cell ===

impl Cell {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), style: None, right: false }
    }

    fn styled(mut self, style: Style) -> Self {
        self.style = Some(style);
        self
    }

    fn right(mut self) -> Self {
        self.right = true;
        self
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Heads of columns; those with `>` stand on the right.
fn heads(names: &[&str]) -> Vec<Cell> {
    let head = |name: &&str| match name.strip_prefix('>') {
        Some(name) => Cell::new(name).styled(Style::Dim).right(),
        None => Cell::new(name).styled(Style::Dim),
    };
    names.iter().map(head).collect()
}

fn connection_row(connection: &ConnectionReport) -> Vec<Cell> {
    let style = match connection {
        ConnectionReport { problems, .. } if !problems.is_empty() => Style::Red,
        ConnectionReport { captured: true, .. } => Style::Green,
        _ => Style::Yellow,
    };
    let original = match connection.original_destination {
        Some(original) => original.to_string(),
        None => "–".to_owned(),
    };
    vec![
        Cell::new(&format!("  {}", connection.from)),
        Cell::new(&connection.to.to_string()),
        Cell::new(&connection.reached).styled(style),
        Cell::new(&original),
        Cell::new(&connection.why),
    ]
}

/// Text in lines of at most `width` characters, broken at blanks.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.len() - 1;
        let length = lines[line].chars().count();
        if length > 0 && length + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if length > 0 {
                lines[line].push(' ');
            }
            lines[line].push_str(word);
        }
    }
    lines
}
