//! Settings of a pod's network namespace that are changed where conflicts are resolved by all means, and put back when rules of ours leave it.

use std::path::Path;

use ::conflicts::{Conflict, Resolution, Severity};
use applied::{Origin, settings};
use facts::PodRef;
use kernel::sysctl;
use netns::Inside;

/// Sets what ends the worst of these conflicts. The values before are kept first; without that nothing is set. A line for what was done, or why not.
pub(super) fn set(
    inside: &Inside,
    run_dir: &Path,
    pod: &PodRef,
    found: &[Conflict],
) -> Vec<Result<String, String>> {
    let mut done: Vec<Result<String, String>> = Vec::new();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for conflict in found.iter().filter(|conflict| conflict.severity == Severity::Error) {
        if let Resolution::Sysctl { name, value } = conflict.resolution
            && !wanted.contains(&(name, value))
        {
            wanted.push((name, value));
        }
    }
    for (name, value) in wanted {
        let set = || -> Result<Option<String>, String> {
            let Some(before) = sysctl::read(inside, name).map_err(|error| error.to_string())? else {
                return Ok(None);
            };
            settings::remember(run_dir, &origin(inside, pod), name, &before)
                .map_err(|error| fault::chain(&error))?;
            let changed = sysctl::write(inside, name, value).map_err(|error| error.to_string())?;
            Ok(changed.then(|| format!("the pod's sysctl {name} is set to {value}; it was {before}")))
        };
        done.extend(
            set().map_err(|why| format!("the pod's sysctl {name} is not set to {value}: {why}")).transpose(),
        );
    }
    done
}

/// Puts back what was set, unless somebody has set it to something else since. What could not be.
pub(crate) fn restore(inside: &Inside, run_dir: &Path, uid: &str) -> Vec<String> {
    let netns = inside.id();
    let mut errors = Vec::new();
    let all = settings::remembered(run_dir, netns, uid);
    if all.is_empty() {
        return errors;
    }
    for (name, before) in all {
        let Resolution::Sysctl { name: known, value } = Resolution::LOOSE_REVERSE_PATH else { continue };
        let is_ours = || sysctl::read(inside, known).map(|now| now.as_deref() == Some(value));
        let restored = match name == known {
            true => is_ours()
                .and_then(|ours| if ours { sysctl::write(inside, known, &before) } else { Ok(false) }),
            false => Ok(false),
        };
        errors.extend(
            restored.err().map(|error| format!("sysctl {name} is not put back to {before}: {error}")),
        );
    }
    if errors.is_empty() {
        errors.extend(settings::forget(run_dir, netns).err().map(|error| fault::chain(&error)));
    }
    errors
}

fn origin(inside: &Inside, pod: &PodRef) -> Origin {
    let (interface, addresses) = (String::new(), Vec::new());
    Origin { netns: inside.id(), pod: pod.to_string(), uid: pod.uid.clone(), interface, addresses }
}
