//! Label selectors as people write them.

use super::{Operator, Requirement, Selector};

/// A selector as kubectl takes it: requirements with commas between, all of which hold.
///
/// # Errors
/// It is none, for this reason.
pub fn parse_selector(text: &str) -> Result<Selector, String> {
    let requirements: Vec<Requirement> = parts(text).map(requirement).collect::<Result<_, _>>()?;
    if requirements.is_empty() {
        return Err("no requirement; write KEY=VALUE".to_owned());
    }
    Ok(Selector::new(requirements))
}

/// The text between commas that are outside of parentheses.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let is_end = move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    text.split(is_end).map(str::trim).filter(|part| !part.is_empty())
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let one = |value: &str| [value.trim().into()].into();
    let (key, operator) = if let Some(key) = text.strip_prefix('!') {
        (key, Operator::DoesNotExist)
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, Operator::NotIn(one(value)))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Operator::In(one(value)))
    } else if let Some((head, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let mut values: Vec<Box<str>> = values.split(',').map(|value| value.trim().into()).collect();
        values.sort_unstable();
        values.dedup();
        match head.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => (key, Operator::In(values.into())),
            Some((key, "notin")) => (key, Operator::NotIn(values.into())),
            _ => return Err(format!("{text:?} is not KEY in (A,B) or KEY notin (A,B)")),
        }
    } else {
        (text, Operator::Exists)
    };
    let key = key.trim();
    if !capture::select::is_label_key(key) {
        return Err(format!("{key:?} is not the key of a label; write KEY=VALUE, KEY in (A,B) or !KEY"));
    }
    Ok(Requirement { key: key.into(), operator })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn selectors_are_those_of_kubectl() {
        let web = labels(&[("app", "web"), ("tier", "front")]);
        for (text, selected) in [
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("missing notin (x)", true),
            ("tier", true),
            ("!tier", false),
            ("!missing,app", true),
            ("example.com/x=", false),
        ] {
            let selector = parse_selector(text).unwrap();
            assert_eq!(selector.selects(|key| web.get(key).map(String::as_str)), selected, "{text}");
        }
        for text in ["", ",", "=x", "app near (x)", "a b=c", "app in x)"] {
            assert!(parse_selector(text).is_err(), "{text:?}");
        }
    }
}
