//! Who changed what is ours, as far as it can be told.

use std::fmt;

/// What `comm` of a process of the legacy iptables is called where the kernel tells of no writer, as it does not for that.
const UNSEEN: &str = "iptables-legacy";

/// A writer. What a process says of itself is its own choice: it is evidence for people, and no decision goes by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Culprit {
    /// Its process, as the node numbers it.
    pub pid: Option<u32>,
    /// Its name (`comm`), at most 15 bytes; empty where it is not known.
    pub command: String,
    /// Its program.
    pub executable: Option<String>,
    /// The container that it runs in.
    pub container: Option<String>,
    /// The pod that it runs in: `namespace/name` where that is known, else the uid.
    pub pod: Option<String>,
    /// It is a process of the pod whose rules it changed.
    pub in_the_pod: bool,
}

// === impl Culprit ===

impl Culprit {
    /// Nobody knows.
    #[must_use]
    pub fn unknown() -> Self {
        Self::default()
    }

    /// A change of the legacy iptables, of which the kernel tells nobody.
    #[must_use]
    pub fn unseen() -> Self {
        Self { command: UNSEEN.into(), ..Self::default() }
    }

    /// One of few words, for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        let program = self.executable.as_deref().and_then(|path| path.rsplit('/').next());
        let known = |name: &str| match name {
            "nft" => Some("nft"),
            "firewalld" => Some("firewalld"),
            name if name.starts_with("docker") => Some("docker"),
            name if is_legacy(name) => Some("iptables-legacy"),
            name if is_iptables(name) => Some("iptables"),
            _ => None,
        };
        // A name says more than the program where that is a script's interpreter, or one for many names.
        let named = known(&self.command).or_else(|| program.and_then(known));
        named.unwrap_or(if self.command.is_empty() && program.is_none() { "unknown" } else { "other" })
    }
}

fn is_iptables(name: &str) -> bool {
    ["iptables", "ip6tables", "xtables", "arptables", "ebtables"].iter().any(|start| name.starts_with(start))
}

/// `comm` is cut off after 15 bytes: `xtables-legacy-`, `ip6tables-legac`.
fn is_legacy(name: &str) -> bool {
    is_iptables(name) && name.contains("-lega")
}

impl fmt::Display for Culprit {
    /// As `nft (pid 712, /usr/sbin/nft, container 3f…, pod shop/web)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.command, self.pid) {
            ("", None) => return f.write_str("unknown"),
            (UNSEEN, None) => return f.write_str("iptables-legacy (unseen)"),
            ("", Some(_)) => f.write_str("unknown")?,
            (command, _) => f.write_str(command)?,
        }
        let parts = [
            self.pid.map(|pid| format!("pid {pid}")),
            self.executable.clone(),
            self.container.as_ref().map(|id| format!("container {id}")),
            self.pod.as_ref().map(|pod| format!("pod {pod}")),
            self.in_the_pod.then(|| "the pod itself".to_owned()),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { Ok(()) } else { write!(f, " ({})", parts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(command: &str, executable: Option<&str>) -> Culprit {
        Culprit {
            pid: Some(712),
            command: command.into(),
            executable: executable.map(Into::into),
            ..Culprit::default()
        }
    }

    #[test]
    fn labels_are_few_whatever_a_program_is_called() {
        let cases = [
            ("nft", None, "nft"),
            ("iptables", Some("/usr/sbin/xtables-nft-multi"), "iptables"),
            ("ip6tables-resto", None, "iptables"),
            ("iptables-legacy", None, "iptables-legacy"),
            ("ip6tables-legac", None, "iptables-legacy"),
            ("a name", Some("/usr/sbin/xtables-legacy-multi"), "iptables-legacy"),
            ("firewalld", Some("/usr/bin/python3.12"), "firewalld"),
            ("dockerd", None, "docker"),
            ("evil", Some("/tmp/evil"), "other"),
            ("", None, "unknown"),
        ];
        for (command, executable, label) in cases {
            assert_eq!(named(command, executable).label(), label, "{command} {executable:?}");
        }
        assert_eq!(Culprit::unknown().label(), "unknown");
        assert_eq!(Culprit::unseen().label(), "iptables-legacy");
    }

    #[test]
    fn people_read_what_is_known() {
        let mut culprit = named("nft", Some("/usr/sbin/nft"));
        assert_eq!(culprit.to_string(), "nft (pid 712, /usr/sbin/nft)");
        (culprit.container, culprit.pod) = (Some("3f2a".into()), Some("shop/web".into()));
        culprit.in_the_pod = true;
        let text = "nft (pid 712, /usr/sbin/nft, container 3f2a, pod shop/web, the pod itself)";
        assert_eq!(culprit.to_string(), text);
        assert_eq!(Culprit::unknown().to_string(), "unknown");
        assert_eq!(Culprit::unseen().to_string(), "iptables-legacy (unseen)");
    }
}
