//! How many cases are tried, and from which seed.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

/// Repeats a run: the number that an earlier one printed.
pub const SEED: &str = "AGREEMENT_SEED";
/// How many cases are tried, in place of what the test says.
pub const CASES: &str = "AGREEMENT_CASES";

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
    // Any number will do that is another one next time.
    let random =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64 % 1_000_000_000);
    let seed = number(SEED).unwrap_or_else(random);
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
