//! Options by one table: each with its flag, its variables, its kind, its default and its help. The agent's table is in [`agent`];
//! that of `istio-iptables` in its program.

pub mod agent;
mod table;

pub use table::{Given, Spec, TextForm, TextKind, Values, arg, help_of_variables, parse_integer};
