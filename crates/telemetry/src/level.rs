//! How serious a line is, and from which seriousness on lines are kept.

/// Seriousness of a line, or the least seriousness that a [`crate::Logger`] lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Details for the analysis of one pod, the configuration among them.
    Debug,
    /// What was decided and done.
    Info,
    /// Something is wrong or deprecated, and the operation goes on.
    Warn,
    /// The operation fails.
    Error,
    /// The process cannot go on at all.
    Fatal,
    /// As a threshold: no line passes. No line has this level.
    None,
}

// === impl Level ===

impl Level {
    /// The level that a word of the configuration (`plugin_log_level`) names, whatever its case.
    ///
    /// An unknown word gives `Info`: silencing the plugin because of a typing error helps no one.
    pub fn parse(word: &str) -> Self {
        const ALL: [Level; 6] =
            [Level::Debug, Level::Info, Level::Warn, Level::Error, Level::Fatal, Level::None];
        let word = word.trim();
        ALL.into_iter().find(|level| level.as_str().eq_ignore_ascii_case(word)).unwrap_or(Self::Info)
    }

    /// A level that is kept as its number.
    pub(crate) fn of(kept: &std::sync::atomic::AtomicU8) -> Self {
        const ALL: [Level; 6] =
            [Level::Debug, Level::Info, Level::Warn, Level::Error, Level::Fatal, Level::None];
        let number = usize::from(kept.load(std::sync::atomic::Ordering::Relaxed));
        ALL.get(number).copied().unwrap_or(Self::Info)
    }

    /// The word that stands for this level in the configuration and in a line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
            Self::None => "none",
        }
    }

    /// Whether a line of level `line` passes this threshold.
    pub(crate) fn passes(self, line: Self) -> bool {
        line >= self && line != Self::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_levels_and_an_unknown_word_means_info() {
        for (word, level) in [
            ("debug", Level::Debug),
            ("info", Level::Info),
            ("warn", Level::Warn),
            ("error", Level::Error),
            ("fatal", Level::Fatal),
            ("none", Level::None),
            ("DEBUG", Level::Debug),
            (" error ", Level::Error),
            ("", Level::Info),
            ("warning", Level::Info),
            ("all:debug", Level::Info),
        ] {
            assert_eq!(Level::parse(word), level, "{word:?}");
        }
    }

    #[test]
    fn a_threshold_passes_its_own_level_and_above_and_none_passes_nothing() {
        assert!(Level::Debug.passes(Level::Debug));
        assert!(Level::Info.passes(Level::Fatal));
        assert!(!Level::Info.passes(Level::Debug));
        assert!(!Level::Fatal.passes(Level::Error));
        assert!(!Level::None.passes(Level::Fatal));
        assert!(!Level::Debug.passes(Level::None));
    }
}
