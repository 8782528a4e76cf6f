//! Whether the rules exempt the proxy and nobody else.
//!
//! The kernel tells the proxy's traffic by the user and group of the process that sends it. A container of the application that runs as either
//! passes by the proxy, and a proxy that runs as neither gets its own connections back. Ids that an image gives are not known here.

use crate::annotations::stated_ids;
use crate::decide::PROXY_CONTAINER;
use crate::pod::{Container, Pod};
use crate::settings::Settings;
use crate::values::printable;

/// The init container by which the injector tests the rules; it runs as the proxy's user.
const VALIDATION_CONTAINER: &str = "istio-validation";
/// How many containers a text names.
const NAMED: usize = 3;

/// What the rules exempt that they should not, or the other way round.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Exempt {
    /// Traffic of the running pod that is not captured, or captured without end.
    pub(crate) gaps: Vec<String>,
    /// Traffic of containers that end before the others start. To reach the network before the proxy does, this is done on purpose.
    pub(crate) warnings: Vec<String>,
}

/// Looks at every container of a pod that is to be captured. `proxy` are its containers of that name.
pub(crate) fn find(pod: &Pod, proxy: &[&Container], settings: &Settings) -> Exempt {
    let is_application = |c: &&Container| c.name != PROXY_CONTAINER;
    let ends = |c: &&Container| !c.restarts_always;
    let initial = pod.init_containers.iter().filter(is_application);
    let running = initial.clone().filter(|c| !ends(c)).chain(pod.containers.iter().filter(is_application));
    let before = initial.filter(ends).filter(|c| c.name != VALIDATION_CONTAINER);
    let mut found = Exempt::default();
    found.gaps.extend(root_proxy(pod, proxy, settings));
    found.gaps.extend(taken_for_proxy(pod, running, settings));
    found.warnings.extend(taken_for_proxy(pod, before, settings));
    found
}

/// The rules never exempt the user or group 0, which most images run as.
fn root_proxy(pod: &Pod, proxy: &[&Container], settings: &Settings) -> Option<String> {
    let (user, group) = stated_ids(pod, proxy);
    // Where nobody says the group of user 0, it is 0.
    if user != Some(0) || group.unwrap_or_default() != 0 {
        return None;
    }
    let group = settings.proxy_gids.first().copied().unwrap_or_default();
    Some(format!(
        "{PROXY_CONTAINER} runs as user 0 and group 0, which the rules do not exempt, so its own connections come back to it without end; \
         set its runAsGroup to {group}, or no runAsUser"
    ))
}

/// Containers that run as a user or group which the rules exempt.
fn taken_for_proxy<'a>(
    pod: &Pod,
    containers: impl Iterator<Item = &'a Container>,
    settings: &Settings,
) -> Option<String> {
    let among =
        |ids: &[u32], id: Option<i64>| id.and_then(|id| u32::try_from(id).ok()).filter(|id| ids.contains(id));
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for container in containers {
        let user = among(&settings.proxy_uids, container.run_as_user.or(pod.run_as_user));
        let group = among(&settings.proxy_gids, container.run_as_group.or(pod.run_as_group));
        let found = [user.map(|id| format!("user {id}")), group.map(|id| format!("group {id}"))];
        if user.is_some() || group.is_some() {
            names.push(printable(&container.name));
            ids.extend(found.into_iter().flatten());
        }
    }
    ids.sort_unstable_by(|a, b| b.cmp(a));
    ids.dedup();
    let more = names.len().saturating_sub(NAMED);
    let subject = match &names[..] {
        [] => return None,
        [one] => format!("container {one} runs"),
        few if more == 0 => format!("containers {} run", few.join(", ")),
        many => format!("containers {} and {more} more run", many[..NAMED].join(", ")),
    };
    Some(format!(
        "{subject} as {}, which the rules take for the proxy, so its traffic bypasses the proxy; choose another runAsUser and runAsGroup",
        ids.join(" or ")
    ))
}

#[cfg(test)]
mod tests;
