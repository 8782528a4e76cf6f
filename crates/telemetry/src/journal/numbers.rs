//! Which labels of a line are numbers in JSON, so that a reader can compare and add them.

use crate::line::Label;

/// What names something is text, also where somebody has made the name of digits.
const NAMES: [&str; 24] = [
    "pod",
    "uid",
    "name",
    "namespace",
    "container",
    "containerID",
    "node",
    "error",
    "reason",
    "policy",
    "policies",
    "tenant",
    "version",
    "revision",
    "path",
    "image",
    "netns",
    "if",
    "cmd",
    "culprit",
    "what",
    "value",
    "label",
    "levels",
];
/// More digits than a reader's number can be trusted with.
const MAX_DIGITS: usize = 15;

/// The labels that are numbers, as members of JSON with a comma before each, and the others.
pub(super) fn split<'a>(labels: &[Label<'a>]) -> (Vec<u8>, Vec<Label<'a>>) {
    let (mut numbers, mut texts) = (Vec::new(), Vec::with_capacity(labels.len()));
    for (key, value) in labels {
        if NAMES.contains(key) {
            texts.push((*key, *value));
            continue;
        }
        let text = crate::line::bounded(value);
        if !is_number(&text) {
            texts.push((*key, *value));
            continue;
        }
        numbers.push(b',');
        crate::line::push_json(&mut numbers, key);
        numbers.push(b':');
        numbers.extend_from_slice(text.as_bytes());
    }
    (numbers, texts)
}

/// As JSON writes one: no zero before others, no exponent.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) =
        unsigned.split_once('.').map_or((unsigned, None), |(whole, rest)| (whole, Some(rest)));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_whole = is_digits(whole) && (whole == "0" || !whole.starts_with('0'));
    is_whole && fraction.is_none_or(is_digits) && unsigned.len() <= MAX_DIGITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numbers_and_names_of_digits_are_not() {
        for (text, number) in [
            ("0", true),
            ("17", true),
            ("-3", true),
            ("0.5", true),
            ("1.25", true),
            ("017", false),
            ("1e5", false),
            ("", false),
            ("-", false),
            ("1.", false),
            (".5", false),
            ("10.0.0.1", false),
            ("1234567890123456", false),
            ("\u{661}", false),
            ("3s", false),
        ] {
            assert_eq!(is_number(text), number, "{text:?}");
        }
        let (numbers, texts) = split(&[("pod", &17), ("lines", &17), ("error", &"x"), ("ms", &"0.5")]);
        let keys: Vec<&str> = texts.iter().map(|(key, _)| *key).collect();
        assert_eq!(
            (std::str::from_utf8(&numbers).unwrap(), keys),
            (r#","lines":17,"ms":0.5"#, vec!["pod", "error"])
        );
    }
}
