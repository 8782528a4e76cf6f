//! Finds banned paths in source text. Not a parser: it knows comments, string literals and `use` trees, which is enough for
//! code that rustfmt has formatted.

/// A banned path in a source text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The path that was found, such as `std::fs`.
    pub path: &'static str,
    /// Why it is banned.
    pub reason: &'static str,
}

/// The banned paths that `source` names outside of comments, strings and its trailing `#[cfg(test)]` module.
pub fn find_banned_paths(source: &str, bans: &[(&'static str, &'static str)]) -> Vec<Finding> {
    let code = without_tests(&without_comments_and_strings(source));
    let named = paths(&code);
    bans.iter()
        .filter(|(ban, _)| named.iter().any(|path| path == ban || path.starts_with(&format!("{ban}::"))))
        .map(|&(path, reason)| Finding { path, reason })
        .collect()
}

fn without_comments_and_strings(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            string_length(rest)
        } else if rest.starts_with("'\"'") {
            3
        } else {
            code.push(first);
            first.len_utf8()
        };
        rest = &rest[skipped..];
    }
    code
}

/// Bytes of the string literal that `text` starts with, quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Test modules stand at the end of a file here, so that everything behind the attribute goes.
fn without_tests(code: &str) -> String {
    code.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned()
}

/// All paths from `std::` on, `use` trees unfolded: `std::{fs, net::{IpAddr, TcpStream}}` gives `std::fs`,
/// `std::net::IpAddr`, `std::net::TcpStream`.
fn paths(code: &str) -> Vec<String> {
    // An alias, `fs as files`, names `fs` all the same.
    let dense: String = code.replace(" as ", "|").chars().filter(|c| !c.is_whitespace()).collect();
    let mut found = Vec::new();
    for (at, _) in dense.match_indices("std::") {
        let inside_name = dense[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        // `usestd::fs` is how `use std::fs` looks without white space.
        if !inside_name || dense[..at].ends_with("use") {
            unfold(&dense[at..], "", &mut found);
        }
    }
    found
}

/// Adds the paths that `text` starts with, each behind `prefix`; gives what follows them.
fn unfold<'a>(text: &'a str, prefix: &str, found: &mut Vec<String>) -> &'a str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    let mut rest = &text[end..];
    if !path.ends_with("::") || !rest.starts_with('{') {
        found.push(path.trim_end_matches(':').to_owned());
        // Past an alias.
        return if rest.starts_with('|') {
            rest.trim_start_matches(|c| c != ',' && c != '}' && c != ';')
        } else {
            rest
        };
    }
    rest = &rest[1..];
    while !rest.is_empty() && !rest.starts_with('}') {
        let before = rest.len();
        rest = unfold(rest, &path, found);
        rest = rest.strip_prefix(',').unwrap_or(rest);
        if rest.len() == before {
            break; // Not a use tree.
        }
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANS: &[(&str, &str)] =
        &[("std::fs", "files"), ("std::net::TcpStream", "network"), ("std::env", "environment")];

    fn found(source: &str) -> Vec<&'static str> {
        find_banned_paths(source, BANS).into_iter().map(|finding| finding.path).collect()
    }

    #[test]
    fn paths_are_found_in_every_form() {
        assert_eq!(found("use std::fs;"), ["std::fs"]);
        assert_eq!(found("use std::fs::File;\n"), ["std::fs"]);
        assert_eq!(found("fn f() { let x = ::std::fs::read(p); }"), ["std::fs"]);
        assert_eq!(
            found("use std::{\n    env,\n    net::{IpAddr, TcpStream as Tcp},\n};"),
            ["std::net::TcpStream", "std::env"]
        );
        assert_eq!(found("use std::{io as files, fs as f};"), ["std::fs"]);
        assert_eq!(found("let c = '\"'; std::env::var(k); let d = '\"';"), ["std::env"]);
        assert_eq!(found("let c = \"a\\\"\"; std::env::var(k);"), ["std::env"]);
    }

    #[test]
    fn what_is_no_use_is_not_found() {
        for source in [
            "use std::net::IpAddr;",
            "use std::{fmt, net::{IpAddr, Ipv4Addr}};",
            "/// reads like std::fs\nfn f() {}",
            "let s = \"std::fs\";",
            "use crate::std_fs; use mystd::fs;",
            "use std::fsx;",
            "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n",
            "let v = env!(\"CARGO_PKG_VERSION\");",
        ] {
            assert!(found(source).is_empty(), "{source}: {:?}", found(source));
        }
    }
}
