//! Layout of JSON text without touching its tokens: a number of 40 digits stays one.

use crate::gojson::Tokens;

/// Deepest indentation: a value that is nested 1,000 deep would take a megabyte of blanks.
const MAX_INDENTED: usize = 50;

/// Valid JSON with an indentation of 2 and a newline at the end.
pub(super) fn pretty(json: &str) -> Vec<u8> {
    let mut laid_out = Vec::with_capacity(json.len() * 2);
    let mut depth = 0;
    let mut tokens = Tokens(json.as_bytes()).peekable();
    while let Some(token) = tokens.next() {
        laid_out.extend_from_slice(token);
        match token {
            b"{" | b"[" if !matches!(tokens.peek(), Some(&(b"}" | b"]"))) => {
                depth += 1;
                new_line(&mut laid_out, depth);
            }
            b"," => new_line(&mut laid_out, depth),
            b":" => laid_out.push(b' '),
            b"{" | b"[" => laid_out.extend(tokens.next().into_iter().flatten()),
            _ => {}
        }
        if matches!(tokens.peek(), Some(&(b"}" | b"]"))) {
            depth = depth.saturating_sub(1);
            new_line(&mut laid_out, depth);
        }
    }
    laid_out.push(b'\n');
    laid_out
}

fn new_line(text: &mut Vec<u8>, depth: usize) {
    text.push(b'\n');
    text.extend(std::iter::repeat_n(b' ', 2 * depth.min(MAX_INDENTED)));
}
