//! Where in a JSON text an error is, as a path.
//!
//! The path is found after the fact, from the position that the parser tells, so that parsing costs nothing for it: a deserializer that
//! keeps the path as it goes doubles the code of every type, which is a hundredth of the plugin's size.

/// Longest name of a field that is repeated, in characters.
const LONGEST_KEY: usize = 100;

/// A list or an object that is not closed yet.
enum Open {
    List(usize),
    /// Its current key, as it stands in the text, quotes included; none before the first and after a comma.
    Object(Option<Vec<u8>>),
}

/// What the parser was at when it had read the text up to this line and column: the value that ends there or begins there, or the object
/// whose key it had just read. In the form that users of `kubectl` and `jq` write.
///
/// The text before that position must be JSON; line and column are [`serde_json::Error`]'s.
pub(super) fn at(text: &[u8], line: usize, column: usize) -> String {
    let before: usize =
        text.split_inclusive(|b| *b == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    let end = (before + column).min(text.len());
    let mut open: Vec<Open> = Vec::new();
    let mut at = 0;
    while at < end {
        let byte = text[at];
        match byte {
            b'{' => open.push(Open::Object(None)),
            b'[' => open.push(Open::List(0)),
            b'}' | b']' => {
                open.pop();
            }
            b',' => match open.last_mut() {
                Some(Open::List(index)) => *index += 1,
                Some(Open::Object(key)) => *key = None,
                None => {}
            },
            b'"' => {
                let after = at + string_length(&text[at..]);
                match open.last_mut() {
                    // A key is not the value yet: an error here is about the object.
                    Some(Open::Object(key @ None)) if after < end => *key = Some(text[at..after].to_vec()),
                    _ => {}
                }
                at = after;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    written(&open)
}

/// Bytes of the string with which the text begins, both quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn written(open: &[Open]) -> String {
    let mut text = String::new();
    for each in open {
        match each {
            Open::List(index) => text += &format!("[{index}]"),
            Open::Object(None) => {}
            Open::Object(Some(key)) => {
                let key: String = serde_json::from_slice(key).unwrap_or_default();
                if key.chars().all(|c| c.is_ascii_alphanumeric()) && key.len() <= LONGEST_KEY {
                    text += if text.is_empty() { "" } else { "." };
                    text += &key;
                } else {
                    let key: String = key.chars().take(LONGEST_KEY).collect();
                    text += &format!("[{key:?}]");
                }
            }
        }
    }
    if text.is_empty() { "the object".into() } else { text }
}
