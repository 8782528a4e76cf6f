//! The floor: what starting and ending any static process costs.

fn main() {}
