//! What has to be written, if anything.

use std::path::{Path, PathBuf};

use cni::conflist::Document;

use super::scan::{Candidate, FileState, form_of_path, judge};
use super::{
    ConfigError, InstallConfig, Obstacle, Problem, Scan, WaitReason, list_of, obstacle, original_of,
    with_other_extension,
};
use crate::file::{FileAttributes, FileContent};
use crate::options::InstallMode;

/// What a look at the directory leads to.
#[derive(Debug)]
pub(crate) struct ConfigPlan {
    pub(crate) step: ConfigStep,
    /// Why pods start without the plugin also when the step is done.
    pub(crate) obstacle: Option<Obstacle>,
    /// Files that were passed over.
    pub(crate) problems: Vec<Problem>,
    /// Folders whose files are plugins of a network that was looked at; they need not exist.
    pub(crate) folders: Vec<PathBuf>,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum ConfigStep {
    /// Nothing: the plugin is in this file, as it should be.
    Keep(PathBuf),
    /// A file is to be written.
    Write(Box<Write>),
    /// There is nothing that the plugin could be put into.
    Wait(WaitReason),
}

/// A file to be written.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) target: PathBuf,
    /// What is there now.
    pub(crate) old: Option<FileContent>,
    pub(crate) new: Vec<u8>,
    pub(crate) attributes: FileAttributes,
    /// The single network that becomes the list `target`, and goes.
    pub(crate) single: Option<(PathBuf, Vec<u8>)>,
    /// Whether what is there now is another component's, to be kept as the original.
    pub(crate) keep_original: bool,
    /// What is there now, for those who want to know whose it is.
    pub(crate) found: Option<Document>,
}

/// The network that the plugin joins.
struct Primary {
    candidate: Candidate,
    /// The list with the plugin in it.
    merged: Vec<u8>,
}

/// Looks at the directory.
pub(crate) fn plan(config: &InstallConfig<'_>) -> Result<ConfigPlan, ConfigError> {
    let own_file = config.own_file();
    let mut scan = Scan::new(&config.options.net_dir, own_file.as_deref())?;
    if let (InstallMode::Standalone, Some(path)) = (&config.options.mode, &own_file) {
        let step = standalone(config, path.clone())?;
        return Ok(ConfigPlan { step, obstacle: None, problems: scan.problems, folders: Vec::new() });
    }
    let loaded = scan.loaded();
    let (step, obstacle, folder) = match primary(config, &mut scan)? {
        Err(waiting) => (ConfigStep::Wait(waiting), obstacle::before(None, &loaded, &scan.problems), None),
        Ok(primary) => {
            let used = own_file.clone().unwrap_or_else(|| list_of(&primary.candidate.listed));
            let mut others = loaded;
            others.retain(|path| *path != primary.candidate.listed || own_file.is_some());
            let obstacle = obstacle::before(Some(&used), &others, &scan.problems);
            let obstacle = obstacle.or_else(|| of_itself(used, &primary.candidate));
            let folder = primary.candidate.folder_path.clone();
            let step = match own_file {
                Some(path) => owned(config, path, primary)?,
                None => chained(config, primary)?,
            };
            (step, obstacle, folder)
        }
    };
    let differing = scan.problems.iter().filter_map(|problem| match problem {
        Problem::Differs { folder, .. } => folder.clone(),
        _ => None,
    });
    let folders = folder.into_iter().chain(differing).collect();
    Ok(ConfigPlan { step, obstacle, problems: scan.problems, folders })
}

/// What keeps the plugin from being called although its file is the first.
fn of_itself(used: PathBuf, primary: &Candidate) -> Option<Obstacle> {
    if form_of_path(&used).is_none() {
        return Some(Obstacle::NotLoaded(used));
    }
    (!primary.document.gives_address()).then_some(Obstacle::NoAddress(used))
}

/// The network that the plugin joins: the configured one, else the first that it can be put into.
fn primary(config: &InstallConfig<'_>, scan: &mut Scan) -> Result<Result<Primary, WaitReason>, ConfigError> {
    if let Some(name) = &config.options.conf_name {
        return configured(config, config.path(name));
    }
    let listed: Vec<PathBuf> = scan.loaded();
    for candidate in std::mem::take(&mut scan.candidates) {
        if candidate.state == FileState::Settling {
            return Ok(Err(WaitReason::Settling(candidate.path)));
        }
        let merged = order_problem(config, &candidate, &listed, &scan.problems)
            .map_or_else(|| candidate.merge(config.entry), Err);
        match merged {
            Ok(merged) => return Ok(Ok(Primary { candidate, merged })),
            Err(problem) => scan.problems.push(problem),
        }
    }
    let dir = config.options.net_dir.clone();
    Ok(Err(match scan.problems.first() {
        None if !dir.is_dir() => WaitReason::NoDirectory(dir),
        None => WaitReason::NoNetworks(dir),
        Some(problem) => WaitReason::NoValidNetworks { dir, problem: problem.to_string() },
    }))
}

/// The configured network, under its name or the same with the other extension. Whoever names a file gets the error of what cannot be
/// done with it.
fn configured(config: &InstallConfig<'_>, path: PathBuf) -> Result<Result<Primary, WaitReason>, ConfigError> {
    let mut paths = [Some(path.clone()), with_other_extension(&path)].into_iter().flatten();
    let Some(there) = paths.find(|path| std::fs::symlink_metadata(path).is_ok()) else {
        return Ok(Err(WaitReason::NotThere(path)));
    };
    let candidate = Candidate::load(&there)?;
    if candidate.state == FileState::Settling {
        return Ok(Err(WaitReason::Settling(candidate.path)));
    }
    let merged = candidate.merge(config.entry)?;
    Ok(Ok(Primary { candidate, merged }))
}

/// The file that would sort before a single network once that is a list, whose name sorts later.
fn order_problem(
    config: &InstallConfig<'_>,
    candidate: &Candidate,
    loaded: &[PathBuf],
    problems: &[Problem],
) -> Option<Problem> {
    let (single, list) = (&candidate.listed, list_of(&candidate.listed));
    if config.options.mode != InstallMode::Chained || *single == list {
        return None;
    }
    let used = problems.iter().filter(|problem| problem.may_be_used()).map(Problem::path);
    let mut others = loaded.iter().map(PathBuf::as_path).chain(used);
    let other = others.find(|other| *other > single.as_path() && *other < list.as_path())?;
    Some(Problem::Overtaken { path: single.clone(), other: other.to_owned() })
}

fn chained(config: &InstallConfig<'_>, primary: Primary) -> Result<ConfigStep, ConfigError> {
    let Primary { candidate: Candidate { path, content, document, state, .. }, merged: new } = primary;
    let is_broken = state == FileState::Broken;
    let target = list_of(&path);
    if !is_broken && document.holds(config.entry) && target == path {
        return Ok(ConfigStep::Keep(path));
    }
    let attributes = content.attributes();
    let keep_original = !is_broken && !document.has_entry();
    let found = (!is_broken).then_some(document);
    let (old, single) = if target == path {
        (Some(content), None)
    } else {
        let old = FileContent::read_if_there(&target)?;
        if old.as_ref().is_some_and(|old| !was_single(&target, old)) {
            return Err(ConfigError::Twin { single: path, list: target });
        }
        (old, Some((path, content.bytes)))
    };
    Ok(ConfigStep::Write(Box::new(Write { target, old, new, attributes, single, keep_original, found })))
}

/// Whether a list is one that we made of a single network: it has our entry, and no original of its own.
fn was_single(list: &Path, content: &FileContent) -> bool {
    let document = Document::of_form(form_of_path(list), &content.bytes);
    document.is_ok_and(|document| document.has_entry()) && !original_of(list).exists()
}

fn owned(config: &InstallConfig<'_>, path: PathBuf, primary: Primary) -> Result<ConfigStep, ConfigError> {
    let Primary { candidate, merged } = primary;
    let is_right = |found: &Document| found.holds(config.entry) && found.is_same_network(&candidate.document);
    own(config, path, merged, is_right)
}

fn standalone(config: &InstallConfig<'_>, path: PathBuf) -> Result<ConfigStep, ConfigError> {
    let new = config.entry.render_standalone();
    own(config, path, new, |found| found.is_standalone() && found.holds(config.entry))
}

/// A file that is ours alone.
fn own(
    config: &InstallConfig<'_>,
    path: PathBuf,
    new: Vec<u8>,
    is_right: impl Fn(&Document) -> bool,
) -> Result<ConfigStep, ConfigError> {
    let mode = config.options.own_mode();
    let old = FileContent::read_if_there(&path)?;
    let found = old.as_ref().and_then(|old| Document::of_form(form_of_path(&path), &old.bytes).ok());
    if old.as_ref().is_some_and(|old| old.mode() == mode) && found.as_ref().is_some_and(is_right) {
        return Ok(ConfigStep::Keep(path));
    }
    // What no runtime loads is ours in ruins, or nothing to come back.
    let is_invalid = |old: &FileContent| matches!(judge(&path, old), Err(Problem::Invalid { .. }));
    let keep_original =
        found.as_ref().is_some_and(|found| !found.has_entry()) && !old.as_ref().is_some_and(is_invalid);
    let attributes = FileAttributes::mode(mode);
    Ok(ConfigStep::Write(Box::new(Write {
        target: path,
        old,
        new,
        attributes,
        single: None,
        keep_original,
        found,
    })))
}
