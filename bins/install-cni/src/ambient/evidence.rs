//! What was applied to each pod's namespace, kept in the run directory for the plugin's CHECK (crate `applied`).
//!
//! A record is written with the rules, under the namespace's lock, and removed before they go. It is evidence and nothing else: no step of
//! a pod's way depends on it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use applied::{Applied, Key, Origin};
use kernel::Kernel;
use netns::{Inside, NetnsId};
use ruleset::Plan;

use super::enrol::pod_text;
use super::members::{Member, Members};

/// The records of this node's ambient pods.
#[derive(Debug)]
pub(super) struct Evidence {
    run_dir: PathBuf,
}

/// Whose namespace a record is about.
#[derive(Debug)]
pub(super) struct Subject {
    pod: String,
    uid: String,
    addresses: Vec<IpAddr>,
}

impl Subject {
    pub(super) fn of(member: &Member) -> Self {
        Self { pod: pod_text(&member.key), uid: member.key.uid.clone(), addresses: member.ips.clone() }
    }
}

impl Evidence {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned() }
    }

    /// Keeps what was applied, unless the same is kept already; why it could not be.
    pub(super) fn record(
        &self,
        inside: &Inside,
        kernel: Kernel<'_>,
        plan: &Plan,
        subject: &Subject,
    ) -> Option<String> {
        let record = kernel.record(plan)?;
        let key = Key::Namespace(inside.id());
        let origin = Origin {
            netns: inside.id(),
            pod: subject.pod.clone(),
            uid: subject.uid.clone(),
            interface: String::new(),
            addresses: subject.addresses.clone(),
        };
        let wanted = Applied { origin, record: Some(record) };
        // Each verification comes here, and hardly any changes something.
        if applied::read(&self.run_dir, key).is_ok_and(|kept| kept.as_ref() == Some(&wanted)) {
            return None;
        }
        let record = wanted.record.as_ref()?;
        let written = applied::write(&self.run_dir, key, &wanted.origin, record);
        written.err().map(|error| format!("CHECK will not know what was applied to this pod: {error}"))
    }

    /// Forgets what was applied to a namespace; why it could not.
    pub(super) fn forget(&self, netns: NetnsId) -> Option<String> {
        applied::remove(&self.run_dir, Key::Namespace(netns)).err().map(|error| error.to_string())
    }

    /// Forgets namespaces that are no member's. While that of a member is not known, any of them may be its.
    pub(super) fn sweep(&self, members: &Members) -> Option<String> {
        let valid = || {
            let members = members.all();
            members.iter().map(|member| member.netns.as_ref().map(|netns| netns.id())).collect()
        };
        applied::keep_namespaces(&self.run_dir, valid).err().map(|error| error.to_string())
    }
}
