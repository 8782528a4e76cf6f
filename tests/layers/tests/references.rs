//! Names, comments, messages and documents refer to nothing that a reader of the repository cannot open: no number of a requirement, of a
//! test case or of a finding in a text that is elsewhere. The rule itself is stated instead.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use layers::Workspace;

/// Words that look like such numbers and are names of the field: cryptography, characters, versions, families of addresses, and keys and
/// chains that tests make up.
const NAMES_OF_THE_FIELD: &[&str] = &[
    "P-256", "P-384", "P-521", "SHA-1", "SHA-256", "MD5", "FNV-1", "UTF-8", "C0", "C1", "V1", "V4", "V6",
    "IPV4", "IPV6", "B1", "B2", "C15",
];
/// Licences in deny.toml have names such as BSD-2-Clause.
const LICENCES: &str = "deny.toml";
/// What names a public text with a number: RFC 9562, CVE-2023-1.
const PUBLIC: &[&str] = &["RFC", "CVE", "GHSA"];
/// Names of tests: these prefixes with a number are words of the field, as in `v4_and_v6`.
const PREFIXES_OF_THE_FIELD: &[&str] = &["v", "ipv", "ip"];

/// Files that people read, below `dir`.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                files(&path, found);
            }
        } else if [".rs", ".md", ".toml", ".yaml"].iter().any(|end| name.ends_with(end)) || name == "Makefile"
        {
            found.push(path);
        }
    }
}

/// The part of a line that is for people: a comment or a string in Rust, everything elsewhere.
fn prose(line: &str, is_rust: bool) -> &str {
    match (is_rust, line.find("//"), line.find('"')) {
        (false, ..) => line,
        (true, Some(comment), Some(string)) => &line[comment.min(string)..],
        (true, Some(at), None) | (true, None, Some(at)) => &line[at..],
        (true, None, None) => "",
    }
}

/// Words such as `AA-26`, `PR5` or `C8`: one to three capitals, perhaps a hyphen, one to three digits.
fn numbers(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.:/<>{}[]$^+%".contains(c)));
    let is_number = |word: &&str| {
        let capitals = word.chars().take_while(char::is_ascii_uppercase).count();
        let rest = word[capitals..].strip_prefix('-').unwrap_or(&word[capitals..]);
        let digits = rest.chars().take_while(char::is_ascii_digit).count();
        let tail = &rest[digits..];
        (1..=3).contains(&capitals)
            && (1..=3).contains(&digits)
            && (tail.is_empty() || (tail.len() == 1 && tail.chars().all(|c| c.is_ascii_lowercase())))
    };
    let words = words.map(|word| word.trim_matches(|c| ".:/<>[]{}".contains(c)));
    let is_known =
        |word: &str| NAMES_OF_THE_FIELD.contains(&word.trim_end_matches(|c: char| c.is_ascii_lowercase()));
    words
        .filter(is_number)
        .filter(|word| !is_known(word) && !PUBLIC.iter().any(|name| word.starts_with(name)))
        .collect()
}

/// A function whose name begins with a letter or two and a number: `c05_a_pod_comes`.
fn numbered_name(line: &str) -> Option<&str> {
    let name = line.split_once("fn ")?.1;
    let name = &name[..name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?];
    let letters = name.chars().take_while(char::is_ascii_lowercase).count();
    let rest = name[letters..].strip_prefix('_').unwrap_or(&name[letters..]);
    let digits = rest.chars().take_while(char::is_ascii_digit).count();
    let is_numbered =
        (1..=3).contains(&letters) && (1..=3).contains(&digits) && rest[digits..].starts_with('_');
    (is_numbered && !PREFIXES_OF_THE_FIELD.contains(&&name[..letters])).then_some(name)
}

#[test]
fn nothing_refers_to_a_text_that_is_not_here() {
    let root = Workspace::load().unwrap().workspace_root;
    let own = Path::new(file!()).file_name().unwrap().to_owned();
    let (mut all, mut bad) = (Vec::new(), Vec::new());
    files(root.as_ref(), &mut all);
    assert!(all.len() > 500, "{} files", all.len());
    for path in all.iter().filter(|path| path.file_name() != Some(&own) && !path.ends_with(LICENCES)) {
        let text = fs::read_to_string(path).unwrap();
        let is_rust = path.extension().is_some_and(|end| end == "rs");
        for (number, line) in text.lines().enumerate() {
            let name = if is_rust { numbered_name(line) } else { None };
            for found in numbers(prose(line, is_rust)).into_iter().chain(name) {
                bad.push(format!("{}:{}: {found}", path.display(), number + 1));
            }
        }
    }
    assert!(
        bad.is_empty(),
        "these look like numbers of a text that is not in the repository; state the rule itself, or add a word of the field to the list:\n  {}",
        bad.join("\n  ")
    );
}

#[test]
fn numbers_are_told_from_words_of_the_field() {
    for (text, found) in [
        ("The level (I-5), of AA-26 to AA-28.", &["I-5", "AA-26", "AA-28"][..]),
        ("C8: never another pod's", &["C8"]),
        ("row PR-60a", &["PR-60a"]),
        ("IPv4, IPv6, RFC 9562, UTF-8, P-521 and Families::V4", &[]),
        ("10.0.0.1, fd00::1, 0x1F, A1B2C3 and K8S_POD_NAME", &[]),
    ] {
        assert_eq!(numbers(text), found, "{text}");
    }
    for (line, name) in [
        ("fn c05_a_pod_comes() {", Some("c05_a_pod_comes")),
        ("async fn z03_z06_nothing() {", Some("z03_z06_nothing")),
        ("fn aa_26_annotations() {", Some("aa_26_annotations")),
        ("pub(crate) fn v6_of_a_pod() {", None),
        ("fn a_pod_comes() {", None),
        ("fn ipv6_is_off() {", None),
    ] {
        assert_eq!(numbered_name(line), name, "{line}");
    }
}
