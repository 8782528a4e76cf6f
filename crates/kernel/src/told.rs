//! What a person is told of the kernel's refusals, and when it is asked again: the errors of all modules.

use std::borrow::Cow;

use fault::{Fault, Retry};
use rustix::io::Errno;

use crate::iptables::{self, ProgramFailure};
use crate::{Error, netlink, nft, route, sets};

impl Fault for Error {
    fn retry(&self) -> Retry {
        match self {
            Self::Nft(error) => error.retry(),
            Self::Iptables(error) => error.retry(),
            Self::Route(error) => error.retry(),
            Self::Neither { iptables, .. } => iptables.retry(),
        }
    }

    fn operation(&self) -> &str {
        match self {
            Self::Nft(error) => error.operation(),
            Self::Iptables(error) => error.operation(),
            Self::Route(error) => error.operation(),
            Self::Neither { .. } => "",
        }
    }

    fn root_cause(&self) -> String {
        match self {
            Self::Nft(error) => error.root_cause(),
            Self::Iptables(error) => error.root_cause(),
            Self::Route(error) => error.root_cause(),
            Self::Neither { nftables, iptables } => {
                format!(
                    "neither backend works here: {}, and {}",
                    nftables.root_cause(),
                    iptables.root_cause()
                )
            }
        }
    }

    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Nft(error) => error.advice(),
            Self::Iptables(error) => error.advice(),
            Self::Route(error) => error.advice(),
            // One of them is enough, and iptables asks for less of the node.
            Self::Neither { nftables, iptables } => iptables.advice().or_else(|| nftables.advice()),
        }
    }
}

impl Fault for nft::Error {
    fn retry(&self) -> Retry {
        match self {
            Self::Unsupported { .. } | Self::Denied { .. } | Self::Held { .. } => Retry::OnChange,
            Self::Failed { source, .. } => after(source),
            Self::Contended { .. } => Retry::Backoff,
        }
    }

    fn operation(&self) -> &str {
        match self {
            Self::Unsupported { operation, .. }
            | Self::Denied { operation, .. }
            | Self::Failed { operation, .. }
            | Self::Held { operation, .. } => operation,
            Self::Contended { .. } => "replace the tables",
        }
    }

    fn root_cause(&self) -> String {
        match self {
            Self::Unsupported { missing, .. } => format!("this kernel has no {}", missing.name()),
            Self::Denied { .. } => "no CAP_NET_ADMIN in the namespace's user namespace".to_owned(),
            Self::Failed { source, .. } => words(source),
            Self::Held { table, port, .. } => {
                format!(
                    "another program, with netlink port {port}, keeps table {table} for itself (flag owner)"
                )
            }
            Self::Contended { owner, tries } => {
                format!("the tables of {owner} changed during each of {tries} tries to replace them")
            }
        }
    }

    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Unsupported { missing, .. } => Some(missing.advice().into()),
            Self::Denied { .. } => Some("run as root".into()),
            Self::Failed { hint, .. } => remark(hint),
            Self::Held { .. } => Some("end that program, or delete the pod".into()),
            Self::Contended { .. } => Some("look for a second program that sets up this pod".into()),
        }
    }
}

impl Fault for iptables::Error {
    fn retry(&self) -> Retry {
        match self {
            Self::Missing { .. }
            | Self::WrongVariant { .. }
            | Self::NoNftables { .. }
            | Self::Unsupported(_) => Retry::OnChange,
            // 4: among others, another program holds the lock.
            Self::Run(failure) => match failure.cause {
                ProgramFailure::Start(_)
                | ProgramFailure::Exit(4)
                | ProgramFailure::Signal(_)
                | ProgramFailure::Timeout(_) => Retry::Backoff,
                ProgramFailure::Exit(_) | ProgramFailure::TooMuch(_) => Retry::OnChange,
            },
            Self::Names { .. } | Self::Chains(_) | Self::Supervisor { .. } => Retry::Backoff,
        }
    }

    fn root_cause(&self) -> String {
        match self {
            Self::Missing { program, searched } => format!("{program} is not in {searched}"),
            Self::WrongVariant { program, wanted, found } => {
                format!("{} is not the {wanted} variant but the {found} one", program.display())
            }
            Self::NoNftables { program } => {
                format!("{} works by nf_tables, which this kernel does not have", program.display())
            }
            _ => fault::chain(self),
        }
    }

    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Missing { .. } => Some("install the iptables package on the host".into()),
            Self::WrongVariant { wanted, .. } => {
                Some(format!("install iptables of the {wanted} variant").into())
            }
            Self::NoNftables { .. } => Some("install the legacy variant of iptables on the host".into()),
            _ => None,
        }
    }
}

impl Fault for route::Error {
    fn retry(&self) -> Retry {
        match self {
            Self::NoIpv6 { .. } | Self::OtherRoute { .. } => Retry::OnChange,
            Self::Failed { source, .. } => after(source),
        }
    }

    fn operation(&self) -> &str {
        match self {
            Self::NoIpv6 { operation, .. }
            | Self::OtherRoute { operation, .. }
            | Self::Failed { operation, .. } => operation,
        }
    }

    fn root_cause(&self) -> String {
        match self {
            Self::NoIpv6 { .. } => "IPv6 is not available in this namespace".to_owned(),
            Self::OtherRoute { table, .. } => format!("routing table {table} has another default route"),
            Self::Failed { source, .. } => words(source),
        }
    }

    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NoIpv6 { .. } => Some(
                "look at ipv6.disable= of the kernel command line and at the sysctl net.ipv6.conf.lo.disable_ipv6".into(),
            ),
            Self::OtherRoute { flag, table, .. } => Some(
                format!("remove what does not belong there: `ip {flag} route show table {table}`").into(),
            ),
            Self::Failed { hint, .. } => remark(hint),
        }
    }
}

impl Fault for sets::Error {
    fn retry(&self) -> Retry {
        match self {
            // What is missing or of another type is made anew with the next verification.
            Self::Kernel { .. } => Retry::Backoff,
            Self::Uid { .. } | Self::Unknown { .. } | Self::Unfit { .. } => Retry::OnChange,
        }
    }

    fn operation(&self) -> &str {
        match self {
            Self::Kernel { operation, .. } => operation,
            _ => "",
        }
    }

    fn root_cause(&self) -> String {
        match self {
            Self::Kernel { source, .. } => words(source),
            _ => self.to_string(),
        }
    }

    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Kernel { hint, .. } => remark(hint),
            _ => None,
        }
    }
}

/// A shortage passes by itself; what the kernel refuses otherwise it refuses again.
fn after(answer: &netlink::Error) -> Retry {
    let passes = matches!(
        answer.errno(),
        Some(
            Errno::NOMEM
                | Errno::NOBUFS
                | Errno::MFILE
                | Errno::NFILE
                | Errno::INTR
                | Errno::BUSY
                | Errno::AGAIN
        )
    );
    if passes { Retry::Backoff } else { Retry::OnChange }
}

/// The kernel's answer, without what every refusal begins with.
fn words(answer: &netlink::Error) -> String {
    match answer {
        netlink::Error::Refused { text: Some(text), source } => format!("{source}, the kernel says {text:?}"),
        netlink::Error::Refused { text: None, source } => source.to_string(),
        other => fault::chain(other),
    }
}

/// A remark without its parentheses.
fn remark(hint: &'static str) -> Option<Cow<'static, str>> {
    let bare = hint.trim_start_matches(" (").trim_end_matches(')');
    (!bare.is_empty()).then_some(Cow::Borrowed(bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno) -> netlink::Error {
        netlink::Error::Refused { text: None, source: errno.into() }
    }

    #[test]
    fn a_refusal_reads_cause_first_and_ends_with_what_helps() {
        let operation = || "add table inet istio-cni".to_owned();
        let held = nft::Error::Held {
            operation: operation(),
            table: "istio-cni".into(),
            port: 7,
            source: refused(Errno::PERM),
        };
        assert_eq!(
            fault::message(&Error::from(held)),
            "another program, with netlink port 7, keeps table istio-cni for itself (flag owner) (add table inet istio-cni); end that program, or \
             delete the pod"
        );
        let hint = " (out of memory: look at the node's memory and cgroup limits)";
        let failed = nft::Error::Failed { operation: operation(), hint, source: refused(Errno::NOMEM) };
        let text = fault::message(&failed);
        assert!(
            text.ends_with(
                "(add table inet istio-cni); out of memory: look at the node's memory and cgroup limits"
            ),
            "{text}"
        );
        assert_eq!(failed.retry(), Retry::Backoff);
        let failed = nft::Error::Failed { operation: operation(), hint: "", source: refused(Errno::INVAL) };
        assert_eq!((failed.retry(), failed.advice()), (Retry::OnChange, None));
    }
}
