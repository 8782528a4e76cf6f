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
