//! The program in real namespaces: what it does to the kernel, what it says, and its exit codes. Needs root.

mod apply;
mod cleanup;
mod support;
mod usage;
mod validation;
