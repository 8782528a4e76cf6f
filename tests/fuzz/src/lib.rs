//! Fuzzing with the stable compiler, for readers of input that others write.
//!
//! A [`Target`] is a name, a dictionary, a generator of well-formed inputs, and a function that reads an input and panics where an
//! invariant is broken. [`Target::fuzz`] runs it on the seeds in `tests/fuzz/corpus/<name>/`, then on generated inputs and on mutated ones, until the
//! time is over. What the function returns is the input's *outcome*, such as the kind of an error: an input with a new outcome is kept and mutated
//! further. That stands in for the coverage that a nightly compiler would measure.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `FUZZ_SECONDS` | time of each target | 2 |
//! | `FUZZ_SEED` | start of the random numbers; printed with a failure | 1 |
//! | `FUZZ_INPUT` | a file by its whole path: the target runs on this input and on nothing else | |
//!
//! A failing input is made as short as it fails, written to `target/fuzz/failures/`, and named in the panic's message, with the command that runs it
//! again. Inputs with new outcomes are kept in `target/fuzz/kept/<name>/`, where the next run finds them.
//!
//! A new target is a file in `tests/fuzz/tests/targets/`, or a test module of its own crate where the reader is private, and a folder of seeds.

mod files;
mod memory;
mod minimize;
mod mutate;
mod outcome;
mod random;
mod run;

use std::path::Path;

use proptest::strategy::BoxedStrategy;

pub use outcome::{Outcome, of_text};

/// A reader of untrusted input.
pub struct Target {
    /// Its name, which is that of its folder of seeds.
    pub name: &'static str,
    /// `env!("CARGO_PKG_NAME")`, for the command that repeats a failure.
    pub package: &'static str,
    /// Words of the format, for mutations.
    pub dictionary: &'static [&'static str],
    /// Longest input, in bytes.
    pub max_len: usize,
    /// Memory that one run may hold at a time, in bytes, beside [`Target::MEMORY_PER_BYTE`] for each byte of input.
    pub memory: usize,
    /// Well-formed inputs, or nearly so.
    pub generate: fn() -> BoxedStrategy<Vec<u8>>,
    /// Reads an input. Panics where an invariant is broken.
    pub run: fn(&[u8]) -> Outcome,
}

impl Target {
    /// What a reader may hold for each byte of its input: trees of JSON and YAML have some hundred bytes for a value of two.
    pub const MEMORY_PER_BYTE: usize = 512;

    /// Runs the target for its time, or on the input that `FUZZ_INPUT` names.
    ///
    /// # Panics
    /// An invariant is broken, the input takes too long or too much memory, or there is no seed.
    pub fn fuzz(&self) {
        match std::env::var_os("FUZZ_INPUT") {
            Some(path) => self.repeat(path.as_ref()),
            None => run::fuzz(self),
        }
    }

    /// Runs the target on one input, within the same bounds.
    ///
    /// # Panics
    /// An invariant is broken, the input takes too long or too much memory, or the file cannot be read.
    pub fn repeat(&self, input: &Path) {
        let bytes = std::fs::read(input).unwrap_or_else(|error| panic!("read {}: {error}", input.display()));
        run::repeat(self, &bytes);
    }
}
