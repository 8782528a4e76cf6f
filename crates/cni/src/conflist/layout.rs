//! Layout of JSON text without touching its tokens: a number of 40 digits stays one.

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
    text.extend(std::iter::repeat_n(b' ', 2 * depth));
}

/// Strings, punctuation, and words such as `true` or `1e5`.
struct Tokens<'a>(&'a [u8]);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.0 = self.0.trim_ascii_start();
        let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"{}[],:\"".contains(byte);
        let length = match self.0.first()? {
            b'"' => string_length(self.0),
            byte if is_end(byte) => 1,
            _ => self.0.iter().position(is_end).unwrap_or(self.0.len()),
        };
        let (token, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(token)
    }
}

/// Length of the string that `text` begins with, its quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    let end = text.iter().skip(1).position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        byte => *byte == b'"',
    });
    end.map_or(text.len(), |end| end + 2)
}
