//! Lists as tables and for programs: formats, columns, order, and following what changes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
pub(crate) use checks::API_VERSION;
use clap::ValueEnum;
use serde::Serialize;

use crate::chain::seconds;
use crate::output::{Colour, Format, Usage, VerbAnswer, columns, fitted, paint, print_now, structured};

/// Exit code where there is nothing to show, or nothing that should be captured.
pub(crate) const NOTHING: u8 = 3;
/// Exit code where a part is not known.
pub(crate) const PARTLY_UNKNOWN: u8 = 4;
/// Exit code where the time was over; timeout(1) uses the same.
pub(crate) const OUT_OF_TIME: u8 = 124;
/// Pause between two looks where changes are followed.
const PAUSE: Duration = Duration::from_millis(500);

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// For people
    Table,
    /// For people, with more columns
    Wide,
    /// For programs
    Json,
    /// For programs
    Yaml,
    /// NAMESPACE/NAME only
    Name,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ListArgs {
    /// How the list is written
    #[arg(short, long, value_enum, default_value_t = ListFormat::Table)]
    pub(crate) output: ListFormat,
    /// Leave the heads of columns out
    #[arg(long)]
    no_headers: bool,
    /// Sort by this column, such as state
    #[arg(long, value_name = "COLUMN")]
    sort_by: Option<String>,
    /// Go on and print what changes; with -o json a line for each change
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// End after this many seconds, with exit code 124 if that was too early
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

/// A column: its head, whether only `wide` has it, and a row's cell.
pub(crate) struct Column<T> {
    pub(crate) head: &'static str,
    pub(crate) wide: bool,
    pub(crate) cell: fn(&T) -> (String, Option<Colour>),
}

/// A list of one kind.
pub(crate) struct ResourceList<T: 'static> {
    /// `kind` of the list in JSON, such as `PodList`.
    pub(crate) kind: &'static str,
    /// `kind` of an item, in JSON lines.
    pub(crate) item_kind: &'static str,
    pub(crate) columns: &'static [Column<T>],
    /// What identifies an item while others change.
    pub(crate) key: fn(&T) -> String,
    /// What `-o name` prints.
    pub(crate) name: fn(&T) -> String,
    /// The item without what changes all the time, such as the time of the last look.
    pub(crate) steady: fn(&T) -> T,
}

/// The answer as programs get it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, H, T> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    head: &'a H,
    items: &'a [T],
}

/// One change.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Change<'a, T> {
    api_version: &'static str,
    kind: &'static str,
    change: &'static str,
    #[serde(flatten)]
    item: &'a T,
}

/// A text for people, with the parts around the table.
#[derive(Debug, Default)]
pub(crate) struct Around {
    /// Lines below the table.
    pub(crate) after: String,
}

impl<T: Serialize + Clone + PartialEq> ResourceList<T> {
    /// The items in the order that is asked for.
    ///
    /// # Errors
    /// There is no such column.
    pub(crate) fn sort(&self, args: &ListArgs, items: &mut [T]) -> Result<()> {
        let Some(wanted) = &args.sort_by else { return Ok(()) };
        let wanted = wanted.to_ascii_uppercase().replace(['-', '_'], " ");
        let Some(column) = self.columns.iter().find(|column| column.head == wanted) else {
            let heads: Vec<_> = self
                .columns
                .iter()
                .map(|column| column.head.to_ascii_lowercase().replace(' ', "-"))
                .collect();
            return Err(Usage(format!("--sort-by: choose one of {}", heads.join(", "))).into());
        };
        items.sort_by_cached_key(|item| (column.cell)(item).0);
        Ok(())
    }

    /// The whole list as text.
    ///
    /// # Errors
    /// It has no such form.
    pub(crate) fn print(
        &self,
        args: &ListArgs,
        head: &impl Serialize,
        items: &[T],
        around: &Around,
    ) -> Result<String> {
        let document = Document { api_version: API_VERSION, kind: self.kind, head, items };
        match args.output {
            ListFormat::Json => structured(Format::Json, &document),
            ListFormat::Yaml => structured(Format::Yaml, &document),
            ListFormat::Name => Ok(items.iter().map(|item| (self.name)(item) + "\n").collect()),
            ListFormat::Table | ListFormat::Wide => {
                Ok(fitted(self.table(args, items, !args.no_headers) + &around.after))
            }
        }
    }

    fn table(&self, args: &ListArgs, items: &[T], with_heads: bool) -> String {
        if items.is_empty() {
            return String::new();
        }
        let shown = || self.columns.iter().filter(|column| !column.wide || args.output == ListFormat::Wide);
        let heads = with_heads.then(|| shown().map(|column| column.head.to_owned()).collect());
        let cell = |column: &Column<T>, item: &T| match (column.cell)(item) {
            (text, _) if text.is_empty() => "-".to_owned(),
            (text, Some(colour)) => paint(&text, colour),
            (text, None) => text,
        };
        let rows = items.iter().map(|item| shown().map(|column| cell(column, item)).collect());
        columns(&heads.into_iter().chain(rows).collect::<Vec<_>>())
    }

    /// Prints the list that `load` gives, and then what changes in it, until the time is over or nobody reads any more.
    ///
    /// # Errors
    /// Nothing can be loaded, or printed.
    pub(crate) fn watch(
        &self,
        args: &ListArgs,
        load: &mut dyn FnMut() -> Result<Vec<T>>,
    ) -> Result<VerbAnswer> {
        let end = args.timeout.map(|timeout| Instant::now() + timeout);
        let mut known: Vec<T> = Vec::new();
        let mut is_first = true;
        loop {
            let mut items = load()?;
            self.sort(args, &mut items)?;
            let changes = self.changes(&known, &items);
            if !print_now(&self.change_text(args, &changes, is_first)?)? {
                return Ok(VerbAnswer::text(String::new()));
            }
            (known, is_first) = (items, is_first && changes.is_empty());
            let left = end.map_or(PAUSE, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(VerbAnswer { exit: OUT_OF_TIME, ..VerbAnswer::text(String::new()) });
            }
            std::thread::sleep(left.min(PAUSE));
        }
    }

    /// Each item that is new, other than before, or gone.
    fn changes(&self, before: &[T], now: &[T]) -> Vec<(&'static str, T)> {
        let mut old: HashMap<String, &T> = before.iter().map(|item| ((self.key)(item), item)).collect();
        let mut changes = Vec::new();
        for item in now {
            match old.remove(&(self.key)(item)) {
                None => changes.push(("added", item.clone())),
                Some(old) if (self.steady)(old) != (self.steady)(item) => {
                    changes.push(("changed", item.clone()));
                }
                Some(_) => {}
            }
        }
        // In the order in which they were.
        let gone = before.iter().filter(|item| old.contains_key(&(self.key)(item)));
        changes.extend(gone.map(|item| ("removed", item.clone())));
        changes
    }

    fn change_text(&self, args: &ListArgs, changes: &[(&'static str, T)], is_first: bool) -> Result<String> {
        let change = |(change, item): &(&'static str, T)| {
            let change = Change { api_version: API_VERSION, kind: self.item_kind, change, item };
            Ok(serde_json::to_string(&change)? + "\n")
        };
        let items: Vec<T> = changes.iter().map(|(_, item)| item.clone()).collect();
        match args.output {
            ListFormat::Json => changes.iter().map(change).collect(),
            ListFormat::Yaml => {
                let documents =
                    items.iter().map(|item| Ok("---\n".to_owned() + &structured(Format::Yaml, item)?));
                documents.collect()
            }
            ListFormat::Name => Ok(items.iter().map(|item| (self.name)(item) + "\n").collect()),
            ListFormat::Table | ListFormat::Wide => {
                Ok(self.table(args, &items, is_first && !args.no_headers))
            }
        }
    }
}

/// How long ago a time was, in the largest unit that fits.
pub(crate) fn ago(at: f64) -> String {
    let seconds = (super::own::now() - at).max(0.0);
    // Not negative, and a time that is longer than u64 seconds ago is none.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
    let seconds = seconds as u64;
    crate::node::short(seconds) + " ago"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name, and what is told of it.
    type Item = (&'static str, u32);

    const LISTING: ResourceList<Item> = ResourceList {
        kind: "List",
        item_kind: "Item",
        columns: &[],
        key: |item| item.0.to_owned(),
        name: |item| item.0.to_owned(),
        // What is below ten changes all the time.
        steady: |item| (item.0, item.1 / 10),
    };

    #[test]
    fn what_comes_changes_and_goes_is_told_once_each_in_the_order_of_the_list() {
        let before = [("a", 1), ("b", 10), ("c", 20), ("d", 30), ("e", 40)];
        let now = [("f", 0), ("c", 21), ("d", 31), ("b", 50)];
        let told = [("added", now[0]), ("changed", now[3]), ("removed", before[0]), ("removed", before[4])];
        assert_eq!(LISTING.changes(&before, &now), told);
        assert_eq!(LISTING.changes(&now, &now), []);
    }
}
