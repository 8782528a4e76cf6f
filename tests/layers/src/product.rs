//! The product's own source text: what is below `crates/*/src` and `bins/*/src`, without tests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A source file of the product.
#[derive(Debug)]
pub struct Source {
    /// Below the root of the workspace.
    pub path: PathBuf,
    /// The folder of its crate, such as `crates/kernel`.
    pub package: PathBuf,
    /// Its lines, without a module of tests at its end.
    pub lines: Vec<String>,
}

/// A function.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its first line, from 1.
    pub line: usize,
    /// Its lines, signature included.
    pub length: usize,
}

/// Equal lines in two places.
#[derive(Debug)]
pub struct Repetition {
    /// The first place, `path:first-last`.
    pub first: String,
    /// The other one.
    pub second: String,
    /// The first of the lines.
    pub text: String,
    /// How many lines, without those that do not count.
    pub length: usize,
}

/// Every source file of the product.
///
/// # Errors
/// A folder or file cannot be read.
pub fn product(root: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for folder in ["crates", "bins"] {
        for package in entries(&root.join(folder))? {
            let sources = package.join("src");
            if sources.is_dir() {
                collect(root, &package, &sources, &mut found)?;
            }
        }
    }
    Ok(found)
}

fn collect(root: &Path, package: &Path, folder: &Path, found: &mut Vec<Source>) -> Result<()> {
    for path in entries(folder)? {
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        if path.is_dir() {
            collect(root, package, &path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let below = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_owned();
            let lines = without_tests(&text).lines().map(str::to_owned).collect();
            found.push(Source { path: below(&path), package: below(package), lines });
        }
    }
    Ok(())
}

/// The entries of a folder in the order of their names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths = read.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// A module of tests stands at the end of its file.
fn without_tests(text: &str) -> &str {
    let end = text.find("\n#[cfg(test)]\nmod tests {").map_or(text.len(), |at| at + 1);
    &text[..end]
}

/// The functions of a text as rustfmt lays it out: one ends at the first line that closes a brace where it began.
pub fn functions(lines: &[String]) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let is_end = |line: &String| {
            let rest = line.strip_prefix(indent);
            rest.is_some_and(|rest| rest == "}" || (rest.starts_with(')') && rest.ends_with(';')))
        };
        let length = match line.ends_with(['}', ';']) {
            true => 1,
            false => lines[at..].iter().position(is_end).map_or(1, |end| end + 1),
        };
        found.push(Function { name: name.to_owned(), line: at + 1, length });
    }
    found
}

/// The name of the function that begins on this line.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.trim_start().split_once("fn ")?;
    let is_modifier = |word: &str| {
        ["async", "const", "default", "extern", "\"C\"", "unsafe"].contains(&word) || word.starts_with("pub")
    };
    // `pub(in crate::x)` has a blank.
    let before = before.replace("(in ", "(");
    let name = after.split(['(', '<']).next()?;
    (before.split_whitespace().all(is_modifier) && !name.is_empty()).then_some(name)
}

/// Runs of `least` or more equal lines that stand in two places, the longest of each pair of places. White space does not count, nor do
/// lines without a word, comments, attributes that every item may have, and imports.
pub fn repetitions(sources: &[Source], least: usize) -> Vec<Repetition> {
    let lines: Vec<Vec<(usize, &str)>> = sources.iter().map(|source| counted_lines(&source.lines)).collect();
    let mut seen: std::collections::HashMap<Vec<&str>, (usize, usize)> = std::collections::HashMap::new();
    let mut found: Vec<Repetition> = Vec::new();
    for file in 0..lines.len() {
        let mut at = 0;
        while at + least <= lines[file].len() {
            let window: Vec<&str> = lines[file][at..at + least].iter().map(|(_, text)| *text).collect();
            let Some(&(other, start)) = seen.get(&window) else {
                seen.insert(window, (file, at));
                at += 1;
                continue;
            };
            if other == file && start + least > at {
                at += 1;
                continue;
            }
            let rest = lines[other][start..].iter().zip(&lines[file][at..]);
            let length = rest.take_while(|((_, a), (_, b))| a == b).count();
            let place = |file: usize, at: usize| {
                let numbers = &lines[file];
                format!("{}:{}-{}", sources[file].path.display(), numbers[at].0, numbers[at + length - 1].0)
            };
            let text = lines[file][at].1.to_owned();
            found.push(Repetition { first: place(other, start), second: place(file, at), text, length });
            at += length;
        }
    }
    found
}

/// The lines that count, with their numbers from 1.
fn counted_lines(lines: &[String]) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_import = false;
    for (number, line) in lines.iter().enumerate() {
        let text = line.trim();
        let begins_import = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "]
            .iter()
            .any(|word| text.starts_with(word));
        if in_import || begins_import {
            in_import = !text.ends_with(';');
            continue;
        }
        if text.starts_with("//") || !text.contains(char::is_alphanumeric) {
            continue;
        }
        found.push((number + 1, text));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn functions_end_where_their_brace_does() {
        let text = "impl X {\n    pub(crate) const fn one(&self) -> u8 { 1 }\n\n    async fn two(\n        a: u8,\n    ) -> u8 {\n        if a > 1 {\n            a\n        }\n    }\n\
                    \n    fn three(\n        a: u8,\n    ) -> u8;\n}\nlet x = \"fn four\";\nfn five<T>() {\n}\n";
        let found: Vec<(String, usize, usize)> =
            functions(&lines(text)).into_iter().map(|f| (f.name, f.line, f.length)).collect();
        let wanted = [("one", 2, 1), ("two", 4, 7), ("three", 12, 3), ("five", 17, 2)];
        assert_eq!(found, wanted.map(|(name, line, length)| (name.to_owned(), line, length)));
    }

    #[test]
    fn equal_lines_are_found_across_what_does_not_count() {
        let source =
            |path: &str, text: &str| Source { path: path.into(), package: "p".into(), lines: lines(text) };
        let a = source("a.rs", "use x;\nuse {\n    y,\n};\none\n\ntwo // same\n// other\n  three\n}\nfour\n");
        let b = source("b.rs", "zero\none\ntwo // same\nthree\nfour\nfive\n");
        let found = repetitions(&[a, b], 4);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((&*found[0].first, &*found[0].second, found[0].length), ("a.rs:5-11", "b.rs:2-5", 4));
        let alone = source("c.rs", "a\nb\na\nb\na\nb\n");
        assert!(repetitions(&[alone], 4).is_empty(), "a run is no repetition of itself");
    }
}
