//! Text of a page. What is not written in this program can only get in escaped.

use std::fmt::{Display, Write as _};

use crate::output::{one_line, printable};

/// A part of a page.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Html(String);

impl Html {
    /// Markup of this program.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text of anybody, between tags or in quotes. What would not be seen, or would show text in another order, is written as its number.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        for c in printable(&one_line(&text.to_string())).chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                c => self.0.push(c),
            }
        }
        self
    }

    /// A number: nothing in it is to be escaped.
    pub(super) fn number(&mut self, number: f64) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{}", (number * 10.0).round() / 10.0);
        self
    }

    /// The other part.
    pub(super) fn part(&mut self, part: &Self) -> &mut Self {
        self.0.push_str(&part.0);
        self
    }

    /// A segment of a path in an address.
    pub(super) fn segment(&mut self, text: &str) -> &mut Self {
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => self.0.push(byte.into()),
                other => {
                    let _ = write!(self.0, "%{other:02X}");
                }
            }
        }
        self
    }

    /// A name and what it stands for, in a list of definitions.
    pub(super) fn row(&mut self, name: &'static str, text: impl Display) -> &mut Self {
        self.raw("<div><dt>").raw(name).raw("</dt><dd>").text(text).raw("</dd></div>")
    }

    /// The whole text.
    pub(super) fn into_text(self) -> String {
        self.0
    }

    /// Length in bytes.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A whole document around its main part.
pub(super) fn document(title: &str, nonce: &str, main: &Html) -> Html {
    let mut page = Html::default();
    page.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>").text(title);
    page.raw("</title><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">");
    page.raw("<link rel=\"icon\" href=\"data:,\"><style nonce=\"").text(nonce).raw("\">").raw(STYLE);
    page.raw("</style></head><body><a class=\"skip\" href=\"#main\">To the content</a>");
    page.part(main).raw("<script nonce=\"").text(nonce).raw("\">").raw(SCRIPT);
    page.raw("</script></body></html>\n");
    page
}

/// A page that says one thing.
pub(super) fn message(title: &'static str, text: &str) -> Html {
    let mut main = Html::default();
    main.raw("<main id=\"main\" class=\"message\"><h1>")
        .raw(title)
        .raw("</h1><p>")
        .text(text)
        .raw("</p></main>");
    main
}

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The segment of a path as it was before it was written into an address; nothing where that is not text.
pub(super) fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_others_is_markup() {
        let mut html = Html::default();
        html.raw("<p title=\"").text("\"><script>alert('1')</script>&amp;\u{202e}\n").raw("\">");
        assert_eq!(
            html.into_text(),
            "<p title=\"&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;amp;\\u202e\\u000a\">"
        );
    }

    #[test]
    fn a_segment_is_read_as_it_was_written() {
        for text in ["web-0.a_b", "a/b ?#\"<%", "ä\u{202e}", ""] {
            let mut html = Html::default();
            html.segment(text);
            let written = html.into_text();
            assert!(written.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._%".contains(&b)), "{written}");
            assert_eq!(decode(&written).as_deref(), Some(text));
        }
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_sent_besides_rows_is_small() {
        let empty = document("x", "n", &Html::default()).len();
        assert!(empty < 20_000, "{empty} bytes");
    }
}
