//! `make bench`: each number with its target, as a table and as JSON.
//!
//! Times are compared within one run, each sample of ours next to one of what it is compared with, because absolute times mean little
//! on a shared machine. Nothing here fails on a slow machine; a missed target is printed as missed.

mod agent;
mod ambient;
mod measures;
mod operator;
mod peer;
mod policies;
mod policy_traffic;
mod report;
mod sample;
mod tenants;
mod traffic;
mod verification;
mod verified;

use std::process::ExitCode;

use anyhow::{Context, Result};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // Without it the programs of the test profile would be measured, which do not ship.
    anyhow::ensure!(
        std::env::var_os("ISTIO_CNI_BIN_DIR").is_some(),
        "run `make bench`, which builds what ships"
    );
    let runs = match std::env::var("BENCH_RUNS") {
        Ok(text) => text.parse().context("BENCH_RUNS is not a number")?,
        Err(_) => 200,
    };
    let mut report = report::Report::new(runs);
    // A part of a measure's name chooses; without any, all are taken.
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    // The peer first: a child counts with the memory of this process until it executes, and that grows.
    let all = [
        peer::ALL,
        measures::ALL,
        agent::ALL,
        ambient::ALL,
        traffic::ALL,
        verification::ALL,
        verified::ALL,
        policies::ALL,
        policy_traffic::ALL,
        tenants::ALL,
        operator::ALL,
    ];
    for measure in all.into_iter().flatten().filter(|measure| chosen(measure.name)) {
        eprintln!("… {}", measure.name);
        (measure.run)(runs, &mut report).with_context(|| measure.name)?;
    }
    print!("{}", report.table());
    println!("{}", report.json());
    Ok(())
}
