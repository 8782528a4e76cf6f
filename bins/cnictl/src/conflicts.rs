//! `conflicts`: rules and settings of others that change what ours mean, and, with `--fix`, the end of one of them.

mod fix;
mod foreign;

use std::path::PathBuf;

use anyhow::Result;
use facts::PodRef;
use rundir::pods::{ConflictGap, ConflictReport};

use crate::configuration::ConfigurationArgs;
use crate::output::{Colour, VerbAnswer, one_line, paint};
use crate::pods::{
    Around, Column, ConflictsView, ListArgs, ListHead, NOTHING, PARTLY_UNKNOWN, ResourceList, SelectArgs,
    Viewer,
};

const EXAMPLES: &str = "\
Examples:
  # What do others have on this node that changes what the mesh's rules do?
  cnictl conflicts

  # Of one pod, with the rule in its own notation
  cnictl conflicts shop/web -o wide

  # End one: the rule is shown, and deleted when you say yes; a file is left that puts it back
  cnictl conflicts shop/web --fix CF-P3

Exit codes: 0 there is none of severity error
            1 there is one, or the command failed
            2 wrong command line
            3 with --fix: there is no such conflict
            4 not everything could be looked at
            124 the time was over";

/// Show rules and settings of others that change what the mesh's rules do
///
/// The agent is asked; without it this program looks by itself, and says so. Nothing is written without --fix.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConflictsArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Those of the node's own network namespace only
    #[arg(long, conflicts_with_all = ["pods", "namespace", "selector", "uid"])]
    node: bool,
    /// Delete the foreign rule of this conflict, such as CF-P3; it must be the only one of its kind that is meant
    #[arg(long, value_name = "ID", conflicts_with = "watch")]
    fix: Option<String>,
    /// With --fix: only show what would be deleted
    #[arg(long, requires = "fix")]
    dry_run: bool,
    /// With --fix: do not ask
    #[arg(short, long, requires = "fix")]
    yes: bool,
    /// With --fix: directory for the file that puts the rule back [default: undo in the agent's directory]
    #[arg(long, value_name = "DIR", requires = "fix")]
    undo_dir: Option<PathBuf>,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

const LISTING: ResourceList<ConflictReport> = ResourceList {
    kind: "ConflictList",
    item_kind: "Conflict",
    columns: &[
        Column { head: "WHERE", wide: false, cell: |conflict| (place_of(conflict), None) },
        Column { head: "ID", wide: false, cell: |conflict| (conflict.id.clone(), None) },
        Column { head: "SEVERITY", wide: false, cell: severity_cell },
        Column { head: "CHAIN", wide: false, cell: |conflict| (chain_of(conflict), None) },
        Column { head: "AFFECTS", wide: false, cell: |conflict| (conflict.affects.clone(), None) },
        Column { head: "STATE", wide: false, cell: |conflict| (state_of(conflict), None) },
        Column { head: "HANDLE", wide: true, cell: |conflict| (number(conflict.handle), None) },
        Column { head: "PRIORITY", wide: true, cell: |conflict| (number(conflict.priority), None) },
        Column { head: "FOREIGN", wide: true, cell: |conflict| (conflict.foreign.clone(), None) },
        Column { head: "CULPRIT", wide: true, cell: |conflict| (conflict.culprit.clone(), None) },
        Column { head: "ADVICE", wide: true, cell: |conflict| (conflict.advice.clone(), None) },
    ],
    key: |conflict| {
        format!(
            "{}/{}/{}/{:?}/{}",
            place_of(conflict),
            conflict.id,
            chain_of(conflict),
            conflict.handle,
            conflict.foreign
        )
    },
    name: |conflict| format!("{}/{}", place_of(conflict), conflict.id),
    steady: |conflict| ConflictReport { last_seen: None, ..conflict.clone() },
};

impl ConflictsArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let viewer = Viewer::new(&self.configuration, false, self.list.timeout)?;
        let load = || -> Result<ConflictsView> {
            let mut view = viewer.conflicts(&self.select, self.node)?;
            view.conflicts.retain(|conflict| self.is_meant(conflict));
            Ok(view)
        };
        if self.list.watch {
            return LISTING.watch(&self.list, &mut || Ok(load()?.conflicts));
        }
        let mut view = load()?;
        if let Some(id) = &self.fix {
            return self.fix(id, &view, &viewer);
        }
        LISTING.sort(&self.list, &mut view.conflicts)?;
        let gap = |gap: &ConflictGap| format!("{}: {}", whose(gap.pod.as_ref()), gap.text);
        let gaps: Vec<String> = view.not_looked_at.iter().map(gap).collect();
        let head = ListHead { evidence: &view.evidence, not_looked_at: &gaps };
        let around = Around { after: remarks(&view) };
        let text = LISTING.print(&self.list, &head, &view.conflicts, &around)?;
        Ok(answer(text, &view))
    }

    /// The labels of pods are looked at by who lists them.
    fn is_meant(&self, conflict: &ConflictReport) -> bool {
        match &conflict.pod {
            None => self.node || self.select.is_everything(),
            Some(_) => !self.node,
        }
    }

    fn fix(&self, id: &str, view: &ConflictsView, viewer: &Viewer) -> Result<VerbAnswer> {
        let is_meant = |conflict: &&ConflictReport| !conflict.gone && conflict.id.eq_ignore_ascii_case(id);
        let meant: Vec<&ConflictReport> = view.conflicts.iter().filter(is_meant).collect();
        let conflict = match meant.as_slice() {
            [] => {
                let problem =
                    format!("there is no conflict {id} of what is meant; look with cnictl conflicts");
                return Ok(VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(String::new(), problem) });
            }
            [only] => *only,
            several => {
                let places: Vec<String> = several.iter().map(|one| place_of(one)).collect();
                let problem = format!(
                    "conflict {id} is there {} times ({}); name one pod, or fix the first rule by hand",
                    several.len(),
                    places.join(", ")
                );
                return Ok(VerbAnswer::failed(String::new(), problem));
            }
        };
        let undo_dir = self.undo_dir.clone().unwrap_or_else(|| viewer.run_dir().join("undo"));
        let netns = viewer.netns_of(conflict.pod.as_ref())?;
        let fix = fix::Fix { conflict, netns: &netns, undo_dir: &undo_dir };
        fix.run(self.dry_run, self.yes)
    }
}

/// The pod, or the node.
fn place_of(conflict: &ConflictReport) -> String {
    conflict.pod.as_ref().map_or_else(|| "node".to_owned(), ToString::to_string)
}

fn chain_of(conflict: &ConflictReport) -> String {
    let ConflictReport { family, table, chain, .. } = conflict;
    [family, table, chain].into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ")
}

/// Whether it is there, and what was done about it.
fn state_of(conflict: &ConflictReport) -> String {
    match (&*conflict.resolved, conflict.gone) {
        ("", true) => "gone".to_owned(),
        ("", false) => "there".to_owned(),
        (what, true) => format!("gone: {what}"),
        (what, false) => format!("there again: {what}"),
    }
}

fn number<T: ToString>(number: Option<T>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

fn severity_cell(conflict: &ConflictReport) -> (String, Option<Colour>) {
    let colour = match &*conflict.severity {
        "error" => Some(Colour::Red),
        "warning" => Some(Colour::Yellow),
        _ => None,
    };
    (conflict.severity.clone(), colour)
}

fn whose(pod: Option<&PodRef>) -> String {
    pod.map_or_else(|| "node".to_owned(), |pod| format!("pod {pod}"))
}

/// The same of many pods in one line.
fn gaps(all: &[ConflictGap]) -> Vec<String> {
    let mut by_text: Vec<(&str, Vec<Option<&PodRef>>)> = Vec::new();
    for gap in all {
        match by_text.iter_mut().find(|(text, _)| *text == gap.text) {
            Some((_, pods)) => pods.push(gap.pod.as_ref()),
            None => by_text.push((&gap.text, vec![gap.pod.as_ref()])),
        }
    }
    let line = |(text, pods): (&str, Vec<Option<&PodRef>>)| match pods.as_slice() {
        [first, _, more @ ..] => format!("{} and {} more: {text}", whose(*first), more.len() + 1),
        few => format!("{}: {text}", whose(few.first().copied().flatten())),
    };
    by_text.into_iter().map(line).collect()
}

fn is_bad(conflict: &&ConflictReport) -> bool {
    conflict.severity == "error" && !conflict.gone
}

fn remarks(view: &ConflictsView) -> String {
    let mut lines: Vec<String> = Vec::new();
    for conflict in view.conflicts.iter().filter(is_bad) {
        let advice = if conflict.advice.is_empty() { &conflict.affects } else { &conflict.advice };
        let what = format!("{} {}", place_of(conflict), conflict.id);
        lines.push(format!("{} {what}: {}", paint("problem:", Colour::Red), one_line(advice)));
    }
    for gap in gaps(&view.not_looked_at) {
        lines.push(format!("{} {}", paint("not looked at:", Colour::Yellow), one_line(&gap)));
    }
    lines.push(view.evidence.line());
    let text = lines.join("\n") + "\n";
    if view.conflicts.is_empty() { text } else { format!("\n{text}") }
}

fn answer(text: String, view: &ConflictsView) -> VerbAnswer {
    let mut bad = view.conflicts.iter().filter(is_bad);
    if let Some(first) = bad.next() {
        let more = bad.count();
        let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
        let problem = format!("{} has {}: {}{more}", place_of(first), first.id, one_line(&first.affects));
        return VerbAnswer::failed(text, problem);
    }
    // What nobody sees from here is no failure of this look.
    let failed: Vec<ConflictGap> = view.not_looked_at.iter().filter(|gap| !gap.standing).cloned().collect();
    match gaps(&failed).first() {
        Some(gap) => VerbAnswer {
            exit: PARTLY_UNKNOWN,
            ..VerbAnswer::failed(text, format!("not looked at: {}", one_line(gap)))
        },
        None => VerbAnswer::text(text),
    }
}
