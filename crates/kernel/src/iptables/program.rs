//! Finding the programs, and which variant they are.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ruleset::Family;

use super::child::{self, Surroundings};
use super::error::{Error, Failure};
use crate::nft::Support;

/// Where distributions put the programs; container runtimes often start plugins with a PATH that lacks some of them.
const USUAL_DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Which part of the kernel a program talks to. The two hold their rules apart from one another, and both work at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// x_tables, the old interface.
    Legacy,
    /// nf_tables.
    Nft,
}

/// A pair of programs that are known to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Programs {
    pub(super) variant: Variant,
    pub(super) save: PathBuf,
    pub(super) restore: PathBuf,
}

/// Names to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CandidateName {
    /// `iptables-legacy-restore`, `iptables-nft-restore`.
    Named(Variant),
    /// `iptables-restore`, whatever it is.
    Unsuffixed,
}

/// The directories that are searched, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search(pub(super) Vec<PathBuf>);

// === impl Iptables ===

impl super::Iptables {
    /// Whether both programs of any variant are there, without starting one: what a setup will need at least.
    ///
    /// # Errors
    /// No variant has both. The error names what an unsuffixed `iptables` lacks.
    pub fn available(&self) -> Result<(), Error> {
        let nft = || self.search.pair("iptables-nft");
        let legacy = || self.search.pair("iptables-legacy");
        self.search.pair("iptables").or_else(|error| nft().or_else(|_| legacy()).map_err(|_| error)).map(drop)
    }

    /// The same on a kernel with this nf_tables.
    ///
    /// # Errors
    /// As [`Self::available`] and [`Self::available_without_nftables`].
    pub fn usable_with(&self, support: Support) -> Result<(), Error> {
        if support.tables { self.available() } else { self.available_without_nftables() }
    }

    /// The same for a kernel without nf_tables, where programs of the nft variant do nothing. One whose name does not tell the variant counts
    /// as legacy, as those before 1.8 are.
    ///
    /// # Errors
    /// No variant has both, or the one that has needs nf_tables.
    pub fn available_without_nftables(&self) -> Result<(), Error> {
        if self.search.pair("iptables-legacy").is_ok() {
            return Ok(());
        }
        match self.search.pair("iptables") {
            Ok((program, _)) if variant_by_name(&program) == Some(Variant::Nft) => {
                Err(Error::NoNftables { program })
            }
            Ok(_) => Ok(()),
            Err(missing) => match self.search.pair("iptables-nft") {
                Ok((program, _)) => Err(Error::NoNftables { program }),
                Err(_) => Err(missing),
            },
        }
    }
}

// === impl Search ===

impl Search {
    /// PATH, then the usual directories that it lacks.
    pub(super) fn from_environment() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut directories: Vec<PathBuf> =
            std::env::split_paths(&path).filter(|directory| directory.is_absolute()).collect();
        for usual in USUAL_DIRECTORIES {
            if !directories.iter().any(|directory| directory == Path::new(usual)) {
                directories.push(PathBuf::from(usual));
            }
        }
        Self(directories)
    }

    /// As a value of PATH.
    pub(super) fn joined(&self) -> String {
        self.0.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(":")
    }

    fn find(&self, program: String) -> Result<PathBuf, Error> {
        let found = self.0.iter().map(|directory| directory.join(&program)).find(|path| is_executable(path));
        found.ok_or_else(|| Error::Missing { program, searched: self.joined() })
    }

    /// Where `<stem>-restore` and `<stem>-save` are.
    fn pair(&self, stem: &str) -> Result<(PathBuf, PathBuf), Error> {
        Ok((self.find(format!("{stem}-restore"))?, self.find(format!("{stem}-save"))?))
    }

    /// The programs of a candidate.
    pub(super) fn programs(
        &self,
        family: Family,
        candidate: CandidateName,
        around: &Surroundings,
    ) -> Result<Programs, Error> {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let stem = match candidate {
            CandidateName::Named(variant) => format!("{base}-{variant}"),
            CandidateName::Unsuffixed => base.to_owned(),
        };
        let (restore, save) = self.pair(&stem)?;
        let found = variant_of(&restore, around)?;
        match candidate {
            CandidateName::Named(wanted) if wanted != found => {
                Err(Error::WrongVariant { program: restore, wanted, found })
            }
            _ => Ok(Programs { variant: found, save, restore }),
        }
    }

    /// The programs for what a certain variant holds.
    pub(super) fn programs_of(
        &self,
        family: Family,
        variant: Variant,
        around: &Surroundings,
    ) -> Result<Programs, Error> {
        self.programs(family, CandidateName::Named(variant), around).or_else(|error| {
            let programs = self.programs(family, CandidateName::Unsuffixed, around);
            programs.ok().filter(|programs| programs.variant == variant).ok_or(error)
        })
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The programs are links to one of two (`xtables-nft-multi`, `xtables-legacy-multi`), so the name at the end of the links tells
/// the variant. Only where it does not is the program asked.
fn variant_of(program: &Path, around: &Surroundings) -> Result<Variant, Error> {
    if let Some(variant) = variant_by_name(program) {
        return Ok(variant);
    }
    let version = child::run(program, &["--version"], None, around).map_err(|(cause, said)| {
        Error::Run(Failure { program: program.to_owned(), cause, said, left: Vec::new() })
    })?;
    // Versions before 1.8 print neither word; they are legacy.
    Ok(if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

fn variant_by_name(program: &Path) -> Option<Variant> {
    let end = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    let name = end.file_name().unwrap_or_default().to_string_lossy();
    match (name.contains("nft"), name.contains("legacy")) {
        (true, false) => Some(Variant::Nft),
        (false, true) => Some(Variant::Legacy),
        _ => None,
    }
}

// === impl Variant ===

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        })
    }
}
