//! Pods that are to be captured and cannot be: their start fails, because without capture they would run outside of the mesh.

use std::net::IpAddr;

/// How a pod is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureMode {
    /// By its sidecar.
    Sidecar,
    /// By the node's ztunnel. `ipv6`: whether IPv6 is captured on this node.
    Ambient {
        /// `AMBIENT_IPV6`
        ipv6: bool,
    },
}

/// Why a pod cannot be captured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its containers have a network stack of their own.
    #[error(
        "runtime class {class} is of {sandbox}, whose pods have a network stack of their own, so rules of the pod's network namespace would \
         capture nothing; run it with another class or {}, or name the class in kernel_network_runtime_classes (chart: \
         agent.kernelNetworkRuntimeClasses) if it uses the kernel's",
        outside(*.mode)
    )]
    Sandboxed {
        /// Such as gVisor.
        sandbox: &'static str,
        /// `spec.runtimeClassName`
        class: String,
        /// How the pod is to be captured.
        mode: CaptureMode,
    },
    /// Rules for IPv4 only would let all of its traffic pass by.
    #[error(
        "the pod has only IPv6 addresses, and IPv6 is not captured on this node (AMBIENT_IPV6=false); set ambient.ipv6 of the chart, or label the pod \
         istio.io/dataplane-mode=none to run it outside of the mesh"
    )]
    Ipv6Off,
}

/// Whether a pod of this runtime class and with these addresses, as far as they are known, can be captured. `kernel_classes` are the
/// runtime classes that are said to use the kernel's network stack.
///
/// # Errors
/// It cannot.
pub fn refuse(
    mode: CaptureMode,
    class: Option<&str>,
    kernel_classes: &[String],
    addresses: &[IpAddr],
) -> Result<(), Refusal> {
    let class = class.filter(|class| !kernel_classes.iter().any(|fine| fine == class));
    if let Some((class, sandbox)) = class.and_then(|class| Some((class, sandbox_of_class(class)?))) {
        return Err(Refusal::Sandboxed { sandbox, class: class.to_owned(), mode });
    }
    let only_v6 = !addresses.is_empty() && addresses.iter().all(IpAddr::is_ipv6);
    match mode {
        CaptureMode::Ambient { ipv6: false } if only_v6 => Err(Refusal::Ipv6Off),
        _ => Ok(()),
    }
}

/// The sandbox that a runtime class stands for, by the names that its makers give it.
#[must_use]
pub fn sandbox_of_class(class: &str) -> Option<&'static str> {
    let class = class.to_ascii_lowercase();
    let of = |part: &str| class.split(['-', '_', '.']).any(|word| word == part);
    if of("gvisor") || of("runsc") {
        Some("gVisor")
    } else if of("kata") {
        Some("Kata Containers")
    } else {
        None
    }
}

fn outside(mode: CaptureMode) -> &'static str {
    match mode {
        CaptureMode::Sidecar => "without a sidecar",
        CaptureMode::Ambient { .. } => {
            "label the pod istio.io/dataplane-mode=none to run it outside of the mesh"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_sandboxes_are_known_by_their_words() {
        for (class, sandbox) in [
            ("gvisor", Some("gVisor")),
            ("runsc-kvm", Some("gVisor")),
            ("kata", Some("Kata Containers")),
            ("Kata-qemu", Some("Kata Containers")),
            ("nvidia", None),
            ("katalog", None),
            ("", None),
        ] {
            assert_eq!(sandbox_of_class(class), sandbox, "{class}");
        }
    }

    #[test]
    fn what_is_refused_and_what_helps() {
        use CaptureMode::{Ambient, Sidecar};
        let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        let (none, kernel): (&[String], &[String]) = (&[], &["kata-fc".to_owned()]);
        for (mode, class, fine, addresses, says) in [
            (Sidecar, None, none, &[v6][..], ""),
            (Sidecar, Some("runc"), none, &[], ""),
            (Sidecar, Some("kata-fc"), none, &[], "without a sidecar"),
            (Sidecar, Some("kata-fc"), kernel, &[], ""),
            (Sidecar, Some("kata-qemu"), kernel, &[], "Kata Containers"),
            (Ambient { ipv6: true }, Some("gvisor"), none, &[], "dataplane-mode=none"),
            (Ambient { ipv6: true }, None, none, &[v6], ""),
            (Ambient { ipv6: false }, None, none, &[v6], "only IPv6 addresses"),
            (Ambient { ipv6: false }, None, none, &[v6, v4], ""),
            (Ambient { ipv6: false }, None, none, &[], ""),
        ] {
            let text = refuse(mode, class, fine, addresses).err().map(|refusal| refusal.to_string());
            assert_eq!(text.is_none(), says.is_empty(), "{mode:?} {class:?} {addresses:?}: {text:?}");
            assert!(text.unwrap_or_default().contains(says), "{mode:?} {class:?}");
        }
    }
}
