//! `completion` and `man`: texts generated from the definition of the command line.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::output::Answer;

/// Print the completion script of a shell
///
/// For bash: source <(cnictl completion bash)
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionArgs {
    shell: Shell,
}

/// Print the manual page, or write it and one for each verb into a directory
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Directory for cnictl.1, cnictl-add.1 and so on
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl CompletionArgs {
    pub(crate) fn run(&self) -> Result<Answer> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "cnictl", &mut text);
        Ok(Answer::text(String::from_utf8(text)?))
    }
}

impl ManArgs {
    pub(crate) fn run(&self) -> Result<Answer> {
        if let Some(dir) = &self.dir {
            clap_mangen::generate_to(Cli::command(), dir)
                .with_context(|| format!("write manual pages to {}", dir.display()))?;
            return Ok(Answer::text(String::new()));
        }
        let mut text = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut text)?;
        Ok(Answer::text(String::from_utf8(text)?))
    }
}
