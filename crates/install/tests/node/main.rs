//! The installer on directories of a real file system, watched by the real kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod basic;
mod support;
