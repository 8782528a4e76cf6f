//! `install-cni`, the node agent: all of it is the crate [`agent`].

use std::process::ExitCode;

fn main() -> ExitCode {
    agent::run(std::env::args_os())
}
