//! What a scalar without quotes means.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use granit_parser::Tag;
use serde_json::{Number, Value};

use super::TAG;

/// The prefix of YAML's own tags, `!!` for short.
const OWN: &str = "tag:yaml.org,2002:";
/// `! text`: a value is what its form says, so a scalar is text.
const UNSPECIFIC: &str = "!";

/// The value of a scalar. A tag of somebody else's says nothing about it.
pub(super) fn value(text: &str, plain: bool, tag: Option<&Tag>) -> Result<Value, Cow<'static, str>> {
    let refused = || Cow::Borrowed(TAG);
    match tag.and_then(own).as_deref() {
        None if plain => untagged(text),
        None | Some("str" | UNSPECIFIC) => Ok(text.into()),
        Some("map" | "seq" | "timestamp") => Err(refused()),
        Some("null") => Ok(Value::Null),
        Some("bool") => boolean(text).map(Value::Bool).ok_or_else(refused),
        Some("int") => integer(text).map(Value::Number).ok_or_else(refused),
        Some("float") => float(text)?.map(Value::Number).ok_or_else(refused),
        Some("binary") => binary(text).map(Value::String),
        Some(_) if plain => untagged(text),
        Some(_) => Ok(text.into()),
    }
}

/// A scalar that is a key, which JSON has as text only.
pub(super) fn key(text: &str, plain: bool, tag: Option<&Tag>) -> Result<String, Cow<'static, str>> {
    match tag.and_then(own).as_deref() {
        Some("str" | UNSPECIFIC) => Ok(text.to_owned()),
        _ if plain && is_null(text) => Err(TAG.into()),
        Some("binary") => binary(text),
        Some("bool" | "float" | "int" | "map" | "null" | "seq" | "timestamp") => Err(TAG.into()),
        _ => Ok(text.to_owned()),
    }
}

/// The rest of one of YAML's own tags, such as `str`, or [`UNSPECIFIC`].
pub(super) fn own(tag: &Tag) -> Option<String> {
    match (tag.handle(), tag.suffix()) {
        ("" | "!", "" | "!") => Some(UNSPECIFIC.to_owned()),
        (handle, suffix) => format!("{handle}{suffix}").strip_prefix(OWN).map(str::to_owned),
    }
}

/// Whether a scalar without quotes and tag says that there is no value.
fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Text as base64.
fn binary(text: &str) -> Result<String, Cow<'static, str>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(digits).ok();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(Cow::Borrowed(TAG))
}

fn untagged(text: &str) -> Result<Value, Cow<'static, str>> {
    if is_null(text) {
        return Ok(Value::Null);
    }
    if let Some(boolean) = boolean(text) {
        return Ok(Value::Bool(boolean));
    }
    match integer(text) {
        Some(number) => Ok(Value::Number(number)),
        None => Ok(float(text)?.map_or_else(|| text.into(), Value::Number)),
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// `12`, `-12`, `1_000`, `0x1f`, `0o17`, `0b11`. Not one with a leading zero: versions of YAML disagree whether that is octal.
fn integer(text: &str) -> Option<Number> {
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let prefixed = |small: &str, large: &str| unsigned.strip_prefix(small).or(unsigned.strip_prefix(large));
    let (digits, radix) = match (prefixed("0x", "0X"), prefixed("0o", "0O"), prefixed("0b", "0B")) {
        (Some(digits), ..) => (digits, 16),
        (_, Some(digits), _) => (digits, 8),
        (.., Some(digits)) => (digits, 2),
        _ if unsigned.len() > 1 && unsigned.starts_with('0') => return None,
        _ => (unsigned, 10),
    };
    // An underscore stands between digits.
    let apart = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_digit(radix));
    if !digits.split('_').all(apart) {
        return None;
    }
    let magnitude = i128::from_str_radix(&digits.replace('_', ""), radix).ok()?;
    match negative {
        true => i64::try_from(-magnitude).ok().map(Number::from),
        false => u64::try_from(magnitude).ok().map(Number::from),
    }
}

fn float(text: &str) -> Result<Option<Number>, Cow<'static, str>> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let infinite = matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN");
    let Ok(number) = text.parse::<f64>() else {
        return if infinite { Err(TAG.into()) } else { Ok(None) };
    };
    if number.is_finite() {
        return Ok(Number::from_f64(number));
    }
    // Words such as infinity are text; digits are a number that is too large.
    if unsigned.starts_with(|c: char| c.is_ascii_digit()) { Err(TAG.into()) } else { Ok(None) }
}
