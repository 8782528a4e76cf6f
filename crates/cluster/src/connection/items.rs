//! A list that is read object by object while it comes: what is in memory is one of them, however many there are.

use bytes::Bytes;
use http_body_util::BodyExt;
use kube::client::Body;

use crate::error::Error;

/// Largest list without its objects: a few names and versions.
const MAX_REST: usize = 64 << 10;

/// A body that is a list: an object whose member `items` is an array of objects.
pub(crate) struct Items {
    body: Body,
    /// What came and is not yet given out.
    chunk: Bytes,
    scan: Scan,
    /// The beginning of an object that goes on in the next chunk.
    begun: Vec<u8>,
    rest: Vec<u8>,
    max: usize,
}

/// Where in the list the next byte is. It knows of JSON only what brackets and text are: whoever parses the pieces finds what is wrong with them.
#[derive(Debug, Default)]
struct Scan {
    depth: u32,
    in_text: bool,
    escaped: bool,
    /// Whether the array that is open at depth 2 is `items`.
    in_items: bool,
    in_object: bool,
}

/// What a byte is to the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Belongs to what the one before belongs to.
    Inner,
    /// An object begins with it.
    First,
    /// An object ends with it.
    Last,
    /// Stands between objects.
    Comma,
}

// === impl Items ===

impl Items {
    /// An object of more than `max` bytes is an error.
    pub(crate) fn new(body: Body, max: usize) -> Self {
        let (chunk, begun, rest) = (Bytes::new(), Vec::new(), Vec::new());
        Self { body, chunk, scan: Scan::default(), begun, rest, max }
    }

    /// The next object; nothing at the end.
    pub(crate) async fn next(&mut self, operation: &str) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(object) = self.take(operation)? {
                return Ok(Some(object));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(Error::broken(operation, &error)),
            }
        }
    }

    /// The list without its objects. Before the end it is what came before the next object.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.rest
    }

    fn take(&mut self, operation: &str) -> Result<Option<Bytes>, Error> {
        let chunk = std::mem::take(&mut self.chunk);
        let mut from = 0;
        for (at, byte) in chunk.iter().enumerate() {
            match self.scan.step(*byte, &self.rest, &chunk[from..at]) {
                Role::Inner => {}
                Role::First => {
                    self.keep(operation, false, &chunk[from..at])?;
                    from = at;
                }
                Role::Comma => {
                    self.keep(operation, false, &chunk[from..at])?;
                    from = at + 1;
                }
                Role::Last => {
                    self.chunk = chunk.slice(at + 1..);
                    let end = chunk.slice(from..=at);
                    if self.begun.is_empty() && end.len() <= self.max {
                        return Ok(Some(end));
                    }
                    self.keep(operation, true, &end)?;
                    return Ok(Some(Bytes::from(std::mem::take(&mut self.begun))));
                }
            }
        }
        self.keep(operation, self.scan.in_object, &chunk[from..])?;
        Ok(None)
    }

    /// Keeps a piece of the object that has begun, or of what is around the objects.
    fn keep(&mut self, operation: &str, of_object: bool, piece: &[u8]) -> Result<(), Error> {
        let (kept, limit) = if of_object { (&mut self.begun, self.max) } else { (&mut self.rest, MAX_REST) };
        if kept.len() + piece.len() > limit {
            return Err(Error::TooLarge { operation: operation.into(), limit });
        }
        kept.extend_from_slice(piece);
        Ok(())
    }
}

// === impl Scan ===

impl Scan {
    /// `before` and `piece` are together what came before the byte and is not of an object.
    fn step(&mut self, byte: u8, before: &[u8], piece: &[u8]) -> Role {
        if self.in_text {
            self.in_text = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return Role::Inner;
        }
        match byte {
            b'"' => self.in_text = true,
            b',' if self.in_items && self.depth == 2 => return Role::Comma,
            b'{' | b'[' => {
                self.in_items |= self.depth == 1 && byte == b'[' && names_items(before, piece);
                self.depth += 1;
                if self.in_items && self.depth == 3 && byte == b'{' {
                    self.in_object = true;
                    return Role::First;
                }
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.in_items &= self.depth > 1;
                if self.in_object && self.depth == 2 {
                    self.in_object = false;
                    return Role::Last;
                }
            }
            _ => {}
        }
        Role::Inner
    }
}

/// Whether what came so far ends with `"items":`.
fn names_items(before: &[u8], piece: &[u8]) -> bool {
    // More than the name and the spaces of a list that is written for people need not be looked at.
    let tail = &before[before.len().saturating_sub(64)..];
    let text = [tail, piece].concat();
    let key = text.trim_ascii_end().strip_suffix(b":").map(<[u8]>::trim_ascii_end);
    key.and_then(|key| key.strip_suffix(b"\"items\"")).is_some_and(|rest| !rest.ends_with(b"\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The objects and the rest, when the text comes in pieces of this size.
    fn read(text: &str, size: usize) -> Result<(Vec<String>, String), Error> {
        let mut items = Items::new(Body::empty(), 100);
        let mut objects = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            items.chunk = Bytes::copy_from_slice(piece);
            while let Some(object) = items.take("list")? {
                objects.push(String::from_utf8(object.to_vec()).unwrap());
            }
        }
        Ok((objects, String::from_utf8(items.rest().to_vec()).unwrap()))
    }

    #[test]
    fn objects_are_taken_out_wherever_the_pieces_end() {
        let cases: [(&str, &[&str], &str); 9] = [
            (
                r#"{"metadata":{"a":1},"items":[{"b":[{}]},{}]}"#,
                &[r#"{"b":[{}]}"#, "{}"],
                r#"{"metadata":{"a":1},"items":[]}"#,
            ),
            (r#"{"items":[],"metadata":{}}"#, &[], r#"{"items":[],"metadata":{}}"#),
            (r#"{"items":null}"#, &[], r#"{"items":null}"#),
            ("{ \"items\" :\n [ {\"a\": 1} ,\n {} ] }", &[r#"{"a": 1}"#, "{}"], "{ \"items\" :\n [  \n  ] }"),
            (
                r#"{"items":[{"a":"}]{[\\\"}"}],"b":"items"}"#,
                &[r#"{"a":"}]{[\\\"}"}"#],
                r#"{"items":[],"b":"items"}"#,
            ),
            (r#"{"a":{"items":[{}]},"\"items":[{}]}"#, &[], r#"{"a":{"items":[{}]},"\"items":[{}]}"#),
            (r#"{"items":[1,[{}],"x"]}"#, &[], r#"{"items":[1[{}]"x"]}"#),
            (r#"{"items":[{"ä":"€"}]"#, &[r#"{"ä":"€"}"#], r#"{"items":[]"#),
            ("<html>]}]}{{[[", &[], "<html>]}]}{{[["),
        ];
        for (text, objects, rest) in cases {
            for size in 1..=text.len() {
                let (read, left) = read(text, size).unwrap();
                assert_eq!(
                    (&*read, left.as_str()),
                    (&*objects.iter().map(ToString::to_string).collect::<Vec<_>>(), rest),
                    "{text} by {size}"
                );
            }
        }
    }

    #[test]
    fn neither_an_object_nor_the_rest_grows_without_bounds() {
        let long = "x".repeat(95);
        for size in [1, 7, 200] {
            assert!(read(&format!(r#"{{"items":[{{"a":"{}"}}]}}"#, &long[..90]), size).is_ok());
            let error = read(&format!(r#"{{"items":[{{"a":"{long}"}}]}}"#), size).unwrap_err();
            assert_eq!(error, Error::TooLarge { operation: "list".into(), limit: 100 });
        }
        let error = read(&format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_REST)), 1000).unwrap_err();
        assert_eq!(error, Error::TooLarge { operation: "list".into(), limit: MAX_REST });
    }
}
