//! How many cases are tried, and from which seed.

use std::path::Path;

use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

/// The number that cases are made from, in place of [`USUAL_SEED`]: another one tries others, and one that a run printed repeats it.
pub const SEED: &str = "AGREEMENT_SEED";
/// How many cases are tried, in place of what the test says.
pub const CASES: &str = "AGREEMENT_CASES";

/// Whoever changes nothing gets the same cases again, so that a failure is of the change. `make soak PART=agreement` tries others.
const USUAL_SEED: u64 = 13;

/// A runner for `cases` cases, and its seed.
///
/// Failures are kept in the file `regressions/<name>.txt` of this crate and tried first by every later run.
///
/// # Panics
/// An environment variable is not a number.
pub fn runner(name: &str, cases: u32, shrink: u32) -> (TestRunner, u64) {
    let number = |variable: &str| {
        std::env::var(variable).ok().map(|text| match text.parse::<u64>() {
            Ok(number) => number,
            Err(error) => panic!("environment variable {variable}={text:?}: {error}"),
        })
    };
    let seed = number(SEED).unwrap_or(USUAL_SEED);
    let cases = number(CASES).and_then(|n| n.try_into().ok()).unwrap_or(cases);
    println!("{name}: {cases} cases; repeat with {SEED}={seed}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(format!("{name}.txt"));
    // A path that never goes away: persistence wants one that lives as long as the program.
    let file: &'static str = Box::leak(file.display().to_string().into_boxed_str());
    let config = Config {
        cases,
        max_shrink_iters: shrink,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    (TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)), seed)
}
