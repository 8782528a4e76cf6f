//! `cargo tree`, read. `cargo metadata` would do, but for its features, which are those of the whole workspace with its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::{PROGRAMS, output};

/// Crates by name and version.
pub(crate) type Crates = BTreeMap<Id, Crate>;

/// Names a crate among all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// One crate that is linked into a program.
#[derive(Debug)]
pub(crate) struct Crate {
    /// SPDX expression.
    pub(crate) license: String,
    /// URL; empty when its author gives none.
    pub(crate) repository: String,
    /// Part of this workspace.
    pub(crate) ours: bool,
    /// What it uses.
    pub(crate) uses: BTreeSet<Id>,
}

/// Everything that is linked into [`PROGRAMS`], these included.
pub(crate) fn read(root: &Path) -> Result<Crates> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut args = vec!["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "depth"];
    args.extend(["--format", "|{p}|{l}|{r}|"]);
    args.extend(PROGRAMS.iter().flat_map(|program| ["--package", program]));
    let root = root.canonicalize()?;
    parse(&output(&cargo, &args)?, &root.to_string_lossy())
}

/// Lines such as `2|serde v1.0.1|MIT OR Apache-2.0|https://…|`: depth, crate, licence, repository. What a crate uses stands below it,
/// but only the first time.
fn parse(text: &str, root: &str) -> Result<Crates> {
    let mut crates = Crates::new();
    let mut path: Vec<Id> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let fields: Vec<&str> = line.split('|').collect();
        ensure!(fields.len() == 5, "cargo tree wrote a line that we cannot read: {line}");
        let depth: usize = fields[0].parse().with_context(|| format!("no depth in {line}"))?;
        ensure!(depth <= path.len(), "cargo tree skipped a level before {line}");
        let mut words = fields[1].split_whitespace();
        let name = words.next().unwrap_or_default().to_owned();
        let version = words.next().and_then(|word| word.strip_prefix('v')).unwrap_or_default().to_owned();
        ensure!(!name.is_empty() && !version.is_empty(), "no name and version in {line}");

        let id = Id { name, version };
        path.truncate(depth);
        if let Some(parent) = path.last().and_then(|parent| crates.get_mut(parent)) {
            parent.uses.insert(id.clone());
        }
        crates.entry(id.clone()).or_insert_with(|| Crate {
            // Older crates write OR as a slash.
            license: fields[2].replace('/', " OR "),
            repository: fields[3].to_owned(),
            ours: fields[1].contains(root),
            uses: BTreeSet::new(),
        });
        path.push(id);
    }
    Ok(crates)
}

#[cfg(test)]
mod tests {
    use super::{Id, parse};

    fn id(name: &str) -> Id {
        Id { name: name.to_owned(), version: "1.0.0".to_owned() }
    }

    #[test]
    fn depth_becomes_who_uses_whom() {
        let text = "0|a v1.0.0 (/src/bins/a)|Apache-2.0||\n1|b v1.0.0|MIT/ISC|https://b.test|\n2|c v1.0.0|MIT||\n1|c v1.0.0|MIT||\n\n\
                    0|d v1.0.0 (/src/bins/d)|Apache-2.0||\n1|b v1.0.0|MIT/ISC|https://b.test| (*)\n";
        let crates = parse(text, "/src").unwrap();
        let uses = |name: &str| crates[&id(name)].uses.iter().map(|id| id.name.as_str()).collect::<String>();
        assert_eq!(["a", "b", "c", "d"].map(uses), ["bc", "c", "", "b"]);
        assert_eq!(crates[&id("b")].license, "MIT OR ISC");
        assert_eq!(["a", "b"].map(|name| crates[&id(name)].ours), [true, false]);
    }

    #[test]
    fn other_text_is_an_error() {
        for text in ["error", "x|a v1|||", "1|a v1.0.0|||", "0|a|||", "0|a v1.0.0||"] {
            assert!(parse(text, "/src").is_err(), "{text}");
        }
    }
}
