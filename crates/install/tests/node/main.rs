//! The installer on directories of a real file system, watched by the real kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod basic;
mod faults;
mod golden;
mod kill;
mod libcni;
mod modes;
mod owner;
mod primary;
mod restore;
mod stomp;
mod support;
mod unused;
mod watch;
