//! What cargo knows about the workspace and its dependencies, and the product's source text, for the tests of this crate.

mod product;
mod rules;
mod source;
mod workspace;

pub use product::{Function, Repetition, Source, functions, product, repetitions};
pub use rules::{
    LONG_LIVED, Layer, NATIVE_BUILD_TOOLS, PROGRAM_BANS, PURE_BANS, RUNTIME_BANS, SOURCE_BANS, layer_of,
};
pub use source::{Finding, find_banned_paths};
pub use workspace::{Dependency, Package, Workspace};

/// Fails a test that found violations of a rule.
///
/// # Panics
/// There are some.
pub fn assert_none(rule: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{rule}\n  {}\n", violations.join("\n  "));
}
