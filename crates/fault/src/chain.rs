//! What caused an error, as text.

use std::error::Error;

/// An error with all its causes, as one line. Many libraries repeat the cause in their own words, which is left out.
pub fn chain(error: &(dyn Error + '_)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

/// The words of what is behind all the others.
pub(crate) fn root<E: Error + ?Sized>(error: &E) -> String {
    let Some(mut root) = error.source() else { return error.to_string() };
    while let Some(cause) = root.source() {
        root = cause;
    }
    root.to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An error with a cause, and one without.
    #[derive(Debug)]
    pub(crate) struct Link(pub(crate) &'static str, pub(crate) Option<Box<Link>>);

    impl std::fmt::Display for Link {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Link {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|link| link as &(dyn Error + 'static))
        }
    }

    pub(crate) fn links(texts: &[&'static str]) -> Link {
        let (first, rest) = texts.split_first().expect("a text");
        Link(first, (!rest.is_empty()).then(|| Box::new(links(rest))))
    }

    #[test]
    fn causes_follow_and_none_is_said_twice() {
        assert_eq!(chain(&links(&["open /x"])), "open /x");
        assert_eq!(chain(&links(&["start", "open /x", "no such file"])), "start: open /x: no such file");
        assert_eq!(
            chain(&links(&["connect: refused", "refused", "os error 111"])),
            "connect: refused: os error 111"
        );
        assert_eq!(root(&links(&["start", "open /x", "no such file"])), "no such file");
        assert_eq!(root(&links(&["no such file"])), "no such file");
    }
}
