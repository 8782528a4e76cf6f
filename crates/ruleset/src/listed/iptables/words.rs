//! The words of a line of `iptables-save`.

/// Words as iptables prints them: in quotes where they have blanks.
pub(super) struct Words<'a>(pub(super) &'a str);

impl Words<'_> {
    pub(super) fn next(&mut self) -> Option<String> {
        let text = self.0.trim_start();
        if text.is_empty() {
            return None;
        }
        let (mut word, mut quoted, mut escaped) = (String::new(), false, false);
        for (at, c) in text.char_indices() {
            match c {
                _ if std::mem::take(&mut escaped) => word.push(c),
                '\\' => escaped = true,
                '"' => quoted = !quoted,
                ' ' if !quoted => {
                    self.0 = &text[at..];
                    return Some(word);
                }
                c => word.push(c),
            }
        }
        self.0 = "";
        Some(word)
    }

    /// Leaves out the next word if it is this one.
    pub(super) fn take_if(&mut self, word: &str) -> bool {
        let before = self.0;
        let taken = self.next().as_deref() == Some(word);
        if !taken {
            self.0 = before;
        }
        taken
    }

    /// Leaves out what does not begin another option.
    pub(super) fn skip_values(&mut self) {
        loop {
            let text = self.0.trim_start();
            if text.is_empty() || text.starts_with('-') || text.starts_with("! ") {
                return;
            }
            self.next();
        }
    }

    /// The value of an option of the target.
    pub(super) fn value_of(&mut self, option: &str) -> Option<String> {
        while let Some(word) = self.next() {
            if word == option {
                return self.next();
            }
        }
        None
    }
}
