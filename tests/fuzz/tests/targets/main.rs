//! A target is a module here and a folder of seeds in `corpus/`. `make soak PART=fuzz` runs all of them for long.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod annotations;
mod conflist;
mod foreign;
mod json;
mod manifests;
mod policies;
mod prev_result;
mod tenants;
mod verdicts;
mod zds;
