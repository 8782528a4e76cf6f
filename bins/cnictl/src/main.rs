//! `cnictl`: runs, renders and explains what the plugin does to a pod, and tells how it is installed.

mod audit;
mod bug_report;
mod chain;
mod cli;
mod configuration;
mod conflicts;
mod doctor;
mod explain;
mod kubectl;
mod log;
mod look;
mod node;
mod output;
mod page;
mod pod;
mod pods;
mod policy;
mod question;
mod render;
mod rules;
mod shell;
mod subject;
mod tenants;
mod trace;

use std::path::Path;

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    output::finish(match Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some(kubectl::PLUGIN_NAME) => kubectl::KubectlCli::parse().run(),
        Some(kubectl::COMPLETION_NAME) => {
            let words: Vec<String> =
                std::env::args_os().skip(1).map(|word| word.to_string_lossy().into()).collect();
            Ok(kubectl::complete(&words))
        }
        _ => cli::Cli::parse().run(),
    })
}
