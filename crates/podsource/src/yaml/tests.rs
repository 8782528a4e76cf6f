//! The reading of YAML, beside a library's that reads it into any type.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;

/// What the library that reads YAML into any type makes of it.
fn library(text: &str) -> Option<Value> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).ok()
}

/// Texts in which the reading of a value could differ.
const SCALARS: &[&str] = &[
    "",
    "~",
    "null",
    "Null",
    "NULL",
    "nULL",
    "true",
    "True",
    "TRUE",
    "tRue",
    "false",
    "False",
    "FALSE",
    "yes",
    "no",
    "on",
    "off",
    "y",
    "n",
    "0",
    "-0",
    "+0",
    "1",
    "+1",
    "-1",
    "12",
    "012",
    "-012",
    "00",
    "0.5",
    ".5",
    "-.5",
    "+.5",
    "5.",
    "1e3",
    "1E3",
    "1e+3",
    "1e-3",
    "1_000",
    "1__000",
    "_1",
    "1_",
    "1_000.5",
    "0x1f",
    "0X1F",
    "-0x1f",
    "0x",
    "0xg",
    "0o17",
    "0O17",
    "0o8",
    "0b101",
    "0b2",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "-9223372036854775809",
    "99999999999999999999999999999999999999999",
    "1e999",
    "-1e999",
    ".inf",
    "-.inf",
    "+.Inf",
    ".nan",
    ".NaN",
    "inf",
    "-inf",
    "infinity",
    "nan",
    "NaN",
    "1.5.2",
    "10.0.0.0/8",
    "::1",
    "12:30:45",
    "2026-11-29",
    "1 2",
    "a: b",
    "-",
    "--",
    "- a",
    "a#b",
    "a #b",
    "'x'",
    "\"x\"",
    "''",
    "\"\"",
    "'null'",
    "\"1\"",
    "'true'",
    "\"\\u0041\\n\\x41\"",
    "'it''s'",
    "|\n  a\n  b",
    "|-\n  a\n  b",
    "|+\n  a\n\n",
    ">\n  a\n  b",
    ">-\n  a\n\n  b",
    "|2\n    a",
    "!!str 1",
    "!!str",
    "!!str null",
    "!!int 1",
    "!!int '1'",
    "!!int a",
    "!!float 1",
    "!!float 1.5",
    "!!bool true",
    "!!bool 'true'",
    "!!bool yes",
    "!!null ''",
    "!!null x",
    "!!binary aGVsbG8=",
    "!!binary '%'",
    "!!timestamp 2026-11-29",
    "! 1",
    "! null",
    "!local 1",
    "!local 'x'",
    "!<tag:yaml.org,2002:str> 1",
    "[]",
    "{}",
    "[1, a, null]",
    "{a: 1, 'b': x}",
    "[[1], [2, [3]]]",
    "{a: {b: [c]}}",
    "{a, b: }",
    "[a, ]",
    "*x",
    "&x 1",
    "&x",
    "&x [1, *x]",
    "[&x 1, *x]",
    "[&x {a: 1}, *x]",
    "{a: &x 1, b: *x}",
    "[&x 1, &x 2, *x]",
    "{&k a: 1, b: *k}",
    "{&k a: 1, *k : 2}",
    "{1: a, true: b, null: c}",
    "{? a : b}",
    "{[a]: b}",
    "{{a: b}: c}",
    "? a\n: b",
    "a: 1\na: 2",
    "{a: 1, 'a': 2}",
    "{a: 1, A: 2}",
    "<<: {a: 1}\nb: 2",
    "<<: {a: 1}\na: 2",
    "a: 2\n<<: {a: 1}",
    "<<: [{a: 1}, {a: 2, b: 3}]",
    "<<: 1",
    "<<: [1]",
    "'<<': {a: 1}",
    "<<: null",
    "<<: {a: 1}\n<<: {b: 2}",
    "x: &x {a: 1}\ny: {<<: *x, b: 2}",
    "a:\n- b\n- c",
    "a:\n  - b\n  -\n    c: d",
    "a: b: c",
    "a:\n b\n c",
    "\ta: b",
    "a:\tb",
    "a: [",
    "a: {",
    "a: 'x",
    "]",
    "}",
    "%",
    "@a",
    "`a`",
    "--- a",
    "a\n...",
    "a\n---\nb",
    "# only",
    "a: 1 # end",
    "a: b\r\nc: d\r\n",
    "a: \u{e9}\u{1f600}",
    "\u{feff}a: b",
    "a: \"\\ud83d\\ude00\"",
    "%YAML 1.2\n---\na: b",
    "%YAML 1.1\n---\na: yes",
    "a: !!set {b, c}",
    "!!map {a: 1}",
    "!!seq [1]",
    "!!seq {a: 1}",
    "!!map [1]",
    "!!omap [a: 1]",
    "? |\n  block key\n: - one\n  - two",
    "- - - a\n  - b\n- c",
    "a: |\n  x\n b: c",
    "key with spaces: v",
    "\"quoted key\": v",
    "a:\n  b: 1\n c: 2",
    "a: -",
    "a: [b]c",
    "'a'b",
    "- ? a",
    "-\n-\n- a",
];

/// Where a value can stand: `@` is it.
const PLACES: &[&str] = &[
    "@",
    "k: @",
    "- @",
    "a: 1\nk: @\nz: 2\n",
    "[@]",
    "{k: @}",
    "@: v",
    "? @\n: v",
    "{? @ : v}",
    "a: &z @\nb: *z",
    "a: &z @\n<<: *z",
    "<<: [@]",
    "<<: @",
    "a: !!str @",
    "a: !!int @",
    "a: !!float @",
    "a: !!bool @",
    "a: !!null @",
    "a: !!binary @",
    "a: !x @",
    "a: !!map @",
    "a: !!seq @",
    "!!str @: a",
    "!!int @: a",
    "!!null @: a",
    "!!bool @: a",
    "!!binary @: a",
    "!x @: a",
    "! @: a",
    "a: ! @",
    "a: !<tag:yaml.org,2002:set> @",
    "a: &z !!str @\nb: *z",
];

#[test]
fn every_value_is_read_as_the_library_reads_it() {
    let mut different = Vec::new();
    let (mut read, mut refused) = (0, 0);
    for text in SCALARS.iter().flat_map(|text| PLACES.iter().map(|place| place.replace('@', text))) {
        let (ours, library) = (super::read(&text).ok(), library(&text));
        read += usize::from(library.is_some());
        refused += usize::from(library.is_none());
        if ours != library {
            different.push(format!("{text:?}: ours {ours:?}, library {library:?}"));
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
    assert!(read > 2000 && refused > 1000, "{read} read, {refused} refused");
}

/// Pieces of which documents are made at random.
const PIECES: &[&str] = &[
    "a", "b: ", "- ", "? ", ": ", "\n", "\n  ", "\n    ", "\n", "\n  ", "[", "]", "{", "}", ", ", "&x ",
    "*x", "&y ", "*y", "<<: ", "'q'", "\"d\"", "|\n", ">-\n", "!!str ", "!t ", "1", "0x1", "1.5", "null",
    "true", "# c\n", "---\n", "...\n", "%", "\t", "k: ", "c: v", "~",
];

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 4_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_document_is_read_as_the_library_reads_it(pieces in proptest::collection::vec(0..PIECES.len(), 0..24)) {
        let text: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        let ours = read(&text);
        // The library takes a key for another one if it has another tag.
        let twice = ours.as_ref().is_err_and(|error| error.reason == DUPLICATE_KEY && text.contains('!'));
        proptest::prop_assert!(twice || ours.as_ref().ok() == library(&text).as_ref(), "{:?}: {:?}, {:?}", text, ours, library(&text));
    }
}

#[test]
fn text_that_asks_for_too_much_is_refused_early() {
    let reason = |text: &str| read(text).map(|_| ()).unwrap_err().reason;
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, before) in [('b', 'a'), ('c', 'b'), ('d', 'c'), ('e', 'd'), ('f', 'e')] {
        bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 10].join(", "));
    }
    assert_eq!(reason(&bomb), ALIASES);
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), ["*a"; 8].join(", "));
    assert_eq!(reason(&long), ALIASES);
    let nested: String =
        (0..10).map(|n| format!("&a{n} [")).collect::<String>() + &"x".repeat(1 << 20) + &"]".repeat(10);
    assert_eq!(reason(&nested), ALIASES);
    let names: String = (0..=MAX_NAMES).map(|n| format!("- &a{n} x\n")).collect();
    assert_eq!(reason(&names), ALIASES);
    assert_eq!(reason(&("a: &a x\nb:\n".to_owned() + &"- *a\n".repeat(MAX_NAMES + 1))), ALIASES);
    for depth in [MAX_DEPTH + 1, 100_000] {
        let deep = "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(reason(&deep), "nested deeper than 64 levels");
        assert_eq!(reason(&"- ".repeat(depth)), "nested deeper than 64 levels");
    }
    assert!(reason(&"-\n".repeat(MAX_VALUES + 1)).contains("values in one document; split the file"));
    assert_eq!(read("a: b\na: c").unwrap_err(), Error { line: 2, column: 4, reason: DUPLICATE_KEY.into() });
}
