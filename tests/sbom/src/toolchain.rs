//! What a static program has in it besides crates.

use anyhow::{Context as _, Result};

use crate::output;

/// A library that the toolchain links into every program.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    /// SPDX expression.
    pub(crate) license: &'static str,
}

/// The libraries of this machine's toolchain.
pub(crate) fn parts() -> Result<Vec<Part>> {
    let rust = output("rustc", &["--version"])?;
    let rust = rust.split_whitespace().nth(1).context("rustc named no version")?.to_owned();
    let libc = output("getconf", &["GNU_LIBC_VERSION"])?;
    let libc = libc.trim().strip_prefix("glibc ").context("getconf named no version of glibc")?.to_owned();
    let gcc = output("gcc", &["-dumpfullversion"])?.trim().to_owned();
    Ok(vec![
        Part { name: "rust-std", version: rust, license: "MIT OR Apache-2.0" },
        Part { name: "glibc", version: libc, license: "LGPL-2.1-or-later" },
        Part { name: "libgcc", version: gcc, license: "GPL-3.0-or-later WITH GCC-exception-3.1" },
    ])
}
