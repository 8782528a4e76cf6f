//! What has to be written, if anything.

use std::path::{Path, PathBuf};

use cni::conflist::Document;

use super::scan::State;
use super::{Candidate, Config, ConfigError, Problem, Scan, Waiting, original_of, twin};
use crate::file::{Attributes, Content};
use crate::options::Mode;

/// What a look at the directory leads to.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) step: Step,
    /// The file that runtimes use, if that is another one than was configured.
    pub(crate) preempted_by: Option<PathBuf>,
    /// Files that were passed over.
    pub(crate) problems: Vec<Problem>,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing: the plugin is in this file, as it should be.
    Keep(PathBuf),
    /// A file is to be written.
    Write(Box<Write>),
    /// There is nothing that the plugin could be put into.
    Wait(Waiting),
}

/// A file to be written.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) target: PathBuf,
    /// What is there now.
    pub(crate) old: Option<Content>,
    pub(crate) new: Vec<u8>,
    pub(crate) attributes: Attributes,
    /// The single network that becomes the list `target`, and goes.
    pub(crate) single: Option<(PathBuf, Vec<u8>)>,
    /// Whether what is there now is another component's, to be kept as the original.
    pub(crate) keep_original: bool,
    /// What is there now, for those who want to know whose it is.
    pub(crate) found: Option<Document>,
}

/// Looks at the directory.
pub(crate) fn plan(config: &Config<'_>) -> Result<Plan, ConfigError> {
    let own_file = config.own_file();
    let scan = Scan::new(&config.options.net_dir, own_file.as_deref())?;
    let first = scan.candidates.first().map(|candidate| candidate.listed.clone());
    let is_empty = scan.problems.is_empty();
    let step = match (&config.options.mode, own_file) {
        (Mode::Standalone, Some(path)) => standalone(config, path)?,
        (_, own_file) => match primary(config, scan.candidates)? {
            Err(Waiting::NoNetworks(dir)) if !is_empty => Step::Wait(Waiting::NoValidNetworks(dir)),
            Err(waiting) => Step::Wait(waiting),
            Ok(candidate) => match own_file {
                Some(path) => owned(config, path, &candidate)?,
                None => chained(config, candidate)?,
            },
        },
    };
    let used = match &step {
        Step::Keep(path) => Some(path.clone()),
        Step::Write(write) => Some(write.target.clone()),
        Step::Wait(_) => None,
    };
    Ok(Plan { preempted_by: preempted_by(config, used.as_deref(), first), step, problems: scan.problems })
}

/// The file whose network the plugin joins: the configured one, else the first.
fn primary(
    config: &Config<'_>,
    candidates: Vec<Candidate>,
) -> Result<Result<Candidate, Waiting>, ConfigError> {
    let chosen = match &config.options.conf_name {
        None => candidates.into_iter().next(),
        Some(name) => {
            let path = config.path(name);
            let mut paths = [Some(path.clone()), twin(&path)].into_iter().flatten();
            // Not judged as a candidate: whoever names a file gets the error of what cannot be done with it.
            let there = paths.find(|path| std::fs::symlink_metadata(path).is_ok());
            match there {
                None => return Ok(Err(Waiting::NotThere(path))),
                Some(path) => Some(Candidate::load(&path, false)?),
            }
        }
    };
    Ok(match chosen {
        None => Err(Waiting::NoNetworks(config.options.net_dir.clone())),
        Some(candidate) if candidate.state == State::Settling => Err(Waiting::Settling(candidate.path)),
        Some(candidate) => Ok(candidate),
    })
}

fn chained(config: &Config<'_>, candidate: Candidate) -> Result<Step, ConfigError> {
    let Candidate { path, content, document, state, .. } = candidate;
    let is_broken = state == State::Broken;
    if !is_broken && document.holds(config.entry) && path.extension().is_none_or(|kind| kind != "conf") {
        return Ok(Step::Keep(path));
    }
    let new =
        document.merge(config.entry).map_err(|cause| ConfigError::Merge { path: path.clone(), cause })?;
    let attributes = content.attributes();
    let keep_original = !is_broken && document.entries().is_empty();
    let found = (!is_broken).then_some(document);
    let write = match path.extension().filter(|kind| *kind == "conf").and_then(|_| twin(&path)) {
        None => {
            Write { target: path, old: Some(content), new, attributes, single: None, keep_original, found }
        }
        Some(list) => {
            let old = Content::read_if_there(&list)?;
            if old.as_ref().is_some_and(|old| !was_single(&list, old)) {
                return Err(ConfigError::Twin { single: path, list });
            }
            Write {
                target: list,
                old,
                new,
                attributes,
                single: Some((path, content.bytes)),
                keep_original,
                found,
            }
        }
    };
    Ok(Step::Write(Box::new(write)))
}

/// Whether a list is one that we made of a single network: it has our entry, and no original of its own.
fn was_single(list: &Path, content: &Content) -> bool {
    let document = Document::parse(&content.bytes);
    let has_entry = document.is_ok_and(|document| !document.entries().is_empty());
    has_entry && !original_of(list).exists()
}

fn owned(config: &Config<'_>, path: PathBuf, primary: &Candidate) -> Result<Step, ConfigError> {
    let new = primary
        .document
        .merge(config.entry)
        .map_err(|cause| ConfigError::Merge { path: primary.path.clone(), cause })?;
    let is_right = |found: &Document| found.holds(config.entry) && found.is_same_network(&primary.document);
    own(config, path, new, is_right)
}

fn standalone(config: &Config<'_>, path: PathBuf) -> Result<Step, ConfigError> {
    let new = config.entry.render_standalone();
    own(config, path, new, |found| found.is_standalone() && found.holds(config.entry))
}

/// A file that is ours alone.
fn own(
    config: &Config<'_>,
    path: PathBuf,
    new: Vec<u8>,
    is_right: impl Fn(&Document) -> bool,
) -> Result<Step, ConfigError> {
    let mode = config.options.own_mode();
    let old = Content::read_if_there(&path)?;
    let found = old.as_ref().and_then(|old| Document::parse(&old.bytes).ok());
    if old.as_ref().is_some_and(|old| old.mode() == mode) && found.as_ref().is_some_and(is_right) {
        return Ok(Step::Keep(path));
    }
    let keep_original = found.as_ref().is_some_and(|found| found.entries().is_empty());
    let attributes = Attributes::mode(mode);
    Ok(Step::Write(Box::new(Write {
        target: path,
        old,
        new,
        attributes,
        single: None,
        keep_original,
        found,
    })))
}

/// The first file, if runtimes use it instead of `used`. A standalone file is used by another plugin, whatever its order.
fn preempted_by(config: &Config<'_>, used: Option<&Path>, first: Option<PathBuf>) -> Option<PathBuf> {
    let (used, first) = (used?, first?);
    let is_pinned = config.options.conf_name.is_some() || matches!(config.options.mode, Mode::Owned { .. });
    let before = first.file_name() < used.file_name() && twin(&first).as_deref() != Some(used);
    (is_pinned && config.options.mode != Mode::Standalone && before).then_some(first)
}
