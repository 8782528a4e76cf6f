//! Deletes one foreign rule, after it was shown and somebody said yes, and leaves a file that puts it back.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use netns::Netns;
use rundir::pods::ConflictReport;

use super::foreign::ForeignRule;
use crate::output::VerbAnswer;
use crate::question::confirm;

/// What is to be ended, and where.
pub(super) struct Fix<'a> {
    pub(super) conflict: &'a ConflictReport,
    pub(super) netns: &'a Netns,
    pub(super) undo_dir: &'a Path,
}

impl Fix<'_> {
    /// Shows the rule, asks, writes the file, deletes the rule.
    ///
    /// # Errors
    /// The conflict is no rule, the rule is not there any more, or it could not be deleted.
    pub(super) fn run(&self, dry_run: bool, yes: bool) -> Result<VerbAnswer> {
        let rule = ForeignRule::find(self.conflict, self.netns)?;
        let shown = format!("{}\n{}", rule.place(), rule.text());
        let shown = format!("conflict {}: {}\n{shown}\n", self.conflict.id, self.conflict.affects);
        if dry_run {
            return Ok(VerbAnswer::text(format!(
                "{shown}would be deleted by: {}\n",
                rule.deletion().trim_end()
            )));
        }
        if !yes {
            confirm(
                &shown,
                "This rule is somebody else's and is deleted; they may need it, or add it again.",
            )?;
        }
        let undo = self.write_undo(&rule)?;
        rule.delete(self.netns).with_context(|| format!("nothing was deleted; remove {}", undo.display()))?;
        let again = rule.undo_command(&undo, self.netns.path());
        Ok(VerbAnswer::text(format!("{shown}deleted; to put it back: {again}\n")))
    }

    /// Only root may read and write it: whoever can change it decides over rules.
    fn write_undo(&self, rule: &ForeignRule) -> Result<PathBuf> {
        let dir = self.undo_dir;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("make {}", dir.display()))?;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let path = dir.join(format!("{}-{at}.{}", self.conflict.id, rule.extension()));
        let failed = || format!("write {}; without it nothing is deleted", path.display());
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).with_context(failed)?;
        file.write_all(rule.undo().as_bytes()).and_then(|()| file.sync_all()).with_context(failed)?;
        Ok(path)
    }
}
