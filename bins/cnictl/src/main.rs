//! `cnictl`: runs, renders and explains what the plugin does to a pod, and tells how it is installed.

mod audit;
mod chain;
mod cli;
mod configuration;
mod conflicts;
mod explain;
mod look;
mod node;
mod output;
mod pod;
mod pods;
mod policy;
mod question;
mod render;
mod rules;
mod shell;
mod subject;

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    let cli = cli::Cli::parse();
    output::finish(cli.run())
}
