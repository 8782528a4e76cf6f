//! What ARCHITECTURE.md names is there: files, functions, and a test for each invariant.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use layers::{Workspace, assert_none};

/// The files of the repository, below its root.
struct Tree {
    root: PathBuf,
    files: BTreeSet<PathBuf>,
}

impl Tree {
    fn read() -> Self {
        let root = Workspace::load().unwrap().workspace_root;
        let mut files = BTreeSet::new();
        for folder in ["crates", "bins", "tests", "deploy", "docs", "scripts", ".cargo"] {
            collect(&root, &root.join(folder), &mut files);
        }
        for entry in fs::read_dir(&root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                files.insert(path.strip_prefix(&root).unwrap().to_owned());
            }
        }
        assert!(files.len() > 500, "only {} files were found", files.len());
        Self { root, files }
    }

    /// The files that a name may mean: its path ends with it, without `src`, which a name may leave out. A folder means all below it.
    fn meant_by(&self, name: &str) -> Vec<&PathBuf> {
        let wanted: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != "src").collect();
        let is_meant = |file: &&PathBuf| {
            let parts: Vec<&str> =
                file.iter().filter_map(|part| part.to_str()).filter(|part| *part != "src").collect();
            match name.contains('.') {
                true => parts.ends_with(&wanted),
                false => parts.windows(wanted.len()).any(|window| window == wanted),
            }
        };
        self.files.iter().filter(is_meant).collect()
    }

    fn text(&self, file: &Path) -> String {
        fs::read_to_string(self.root.join(file)).unwrap_or_default()
    }
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(root, &path, files),
            false => drop(files.insert(path.strip_prefix(root).unwrap().to_owned())),
        }
    }
}

/// The rows of the table below a heading, without its head.
fn rows<'a>(document: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let section = document.split(&format!("\n## {heading}")).nth(1).expect(heading);
    let section = section.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().filter(|line| line.starts_with('|'));
    lines.skip(2).map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// What stands between backticks.
fn named(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn is_path(name: &str) -> bool {
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    is_plain
        && !name.starts_with('/')
        && (name.contains('/') || name.ends_with(".rs") || name.ends_with(".md"))
}

/// Whether it can be the name of a function, a type or a module.
fn is_item(name: &str) -> bool {
    name.split("::").all(|part| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

fn defines(text: &str, item: &str) -> bool {
    let name = item.rsplit("::").next().unwrap_or_default();
    let kinds = ["fn", "struct", "enum", "trait", "const", "static", "mod", "type"];
    kinds.iter().any(|kind| {
        text.match_indices(&format!("{kind} {name}")).any(|(at, found)| {
            !text[at + found.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        })
    }) || text.lines().any(|line| line.trim_end_matches([',', '{', '(']).trim() == name)
        || text.contains(&format!("pub {name}: "))
}

#[test]
fn every_file_that_the_document_names_is_there() {
    let tree = Tree::read();
    let document = tree.text(Path::new("ARCHITECTURE.md"));
    let names: BTreeSet<&str> = named(&document).into_iter().filter(|name| is_path(name)).collect();
    assert!(names.len() > 80, "only {} paths", names.len());
    let missing = names.iter().filter(|name| tree.meant_by(name).is_empty());
    assert_none(
        "ARCHITECTURE.md names files that are not there.",
        &missing.map(ToString::to_string).collect::<Vec<_>>(),
    );
}

/// A file, or a function, type or module in one of the files that the row names; of what has a path of its own, in that file.
#[test]
fn every_answer_of_where_is_leads_to_something() {
    let tree = Tree::read();
    let document = tree.text(Path::new("ARCHITECTURE.md"));
    let rows = rows(&document, "Where is");
    assert!(rows.len() > 30, "only {} rows", rows.len());
    let mut violations = Vec::new();
    for row in rows {
        let [question, answer] = row[..] else { panic!("a row of other columns: {row:?}") };
        let files: Vec<&PathBuf> = named(answer)
            .into_iter()
            .filter(|name| is_path(name))
            .flat_map(|name| tree.meant_by(name))
            .collect();
        let items: Vec<&str> =
            named(answer).into_iter().filter(|name| !is_path(name) && is_item(name)).collect();
        // Paths of the row say in which file; an item that begins with a crate is anywhere in it.
        let crates: Vec<String> = items
            .iter()
            .map(|item| format!("crates/{}", item.split("::").next().unwrap_or_default()))
            .collect();
        let in_crates = |file: &&PathBuf| crates.iter().any(|of| file.starts_with(of));
        for item in &items {
            let mut places = files.iter().copied().chain(tree.files.iter().filter(in_crates));
            let is_crate = tree.files.iter().any(|file| file.starts_with(format!("crates/{item}")));
            if !is_crate && !places.any(|file| defines(&tree.text(file), item)) {
                violations.push(format!("{question} {item} is in none of the files {files:?}"));
            }
        }
        if files.is_empty() && !answer.contains("::") && !answer.contains("`applied`") {
            violations.push(format!("{question} the answer names no file"));
        }
    }
    assert_none("The table \"Where is\" leads to files, and to what is in them.", &violations);
}

/// A file of tests, or a folder of them and a module or file in it.
#[test]
fn every_invariant_has_a_test() {
    let tree = Tree::read();
    let document = tree.text(Path::new("ARCHITECTURE.md"));
    let rows = rows(&document, "Invariants");
    assert!(rows.len() > 40, "only {} rows", rows.len());
    let mut violations = Vec::new();
    for row in rows {
        let [invariant, test] = row[..] else { panic!("a row of other columns: {row:?}") };
        let (mut folder, mut found): (Vec<&PathBuf>, usize) = (Vec::new(), 0);
        for name in named(test) {
            if is_path(name) {
                folder = tree.meant_by(name);
                found += usize::from(folder.len() == 1 && name.ends_with(".rs"));
                if folder.is_empty() {
                    violations.push(format!("{invariant}: {name} is not there"));
                }
                continue;
            }
            let name = name.trim_end_matches('…');
            let is_module = |file: &&&PathBuf| file.file_stem().is_some_and(|stem| stem == name);
            let is_function = |file: &&&PathBuf| tree.text(file).contains(&format!("fn {name}"));
            match folder.iter().any(|file| is_module(&file) || is_function(&file)) {
                true => found += 1,
                false => violations.push(format!("{invariant}: {name} is no file and no function there")),
            }
        }
        if found == 0 {
            violations.push(format!("{invariant}: {test} names no file of tests"));
        }
    }
    assert_none("An invariant has a test, which its row names.", &violations);
}
