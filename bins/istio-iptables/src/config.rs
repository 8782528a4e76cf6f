//! Options → what to do, in types. Files are read by a function that is handed in.

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use capture::flags::{FlagError, IptablesFlags, parse_flags, parse_nameservers};
use capture::settings::{Mode, PROXY_ID, PortChoice, Settings};
use capture::values::Quoted;
use kernel::iptables::Variant;
use ruleset::Backend;

use crate::accounts::{self, GROUP, PASSWD};
use crate::options::{self, IptablesOptions, IptablesSetting};

/// Where the DNS servers are.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What a run of the program is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The pod's settings.
    pub(crate) settings: Settings,
    /// What happens to the rules.
    pub(crate) job: RulesJob,
    /// Who holds the rules.
    pub(crate) backend: Backend,
    /// The variant of iptables, if one is asked for.
    pub(crate) variant: Option<Variant>,
    /// Where to work, if not in the own network namespace.
    pub(crate) namespace: Option<PathBuf>,
    /// Print instead of act.
    pub(crate) dry_run: bool,
    /// What to validate afterwards.
    pub(crate) probe: Option<Probe>,
    /// For the log.
    pub(crate) warnings: Vec<String>,
}

/// What happens to the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RulesJob {
    /// Nothing; `why` is for the log.
    Skip {
        /// Reason.
        why: &'static str,
    },
    /// They are removed.
    Cleanup,
    /// They are made what the settings say.
    Apply {
        /// Without comparing first.
        force: bool,
    },
}

/// A validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    /// The port that is connected to and that no connection reaches.
    pub(crate) port: u16,
    /// How long it may take.
    pub(crate) timeout: Duration,
}

/// Options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A value of a certain kind.
    #[error(transparent)]
    Option(#[from] options::Error),
    /// A value that shapes rules.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// A forced program that does not exist.
    #[error("--force-iptables-binary: {0} is neither legacy nor nft")]
    Variant(Quoted),
    /// DNS servers are wanted and not known.
    #[error(
        "cannot read {RESOLV_CONF}, which names the DNS servers for --redirect-dns (with --capture-all-dns it is not needed)"
    )]
    ResolvConf(#[source] io::Error),
}

/// Makes types of the options. `read` gives the text of a file.
///
/// # Errors
/// The first option that cannot be used.
pub(crate) fn build(
    options: &IptablesOptions,
    read: &dyn Fn(&str) -> io::Result<String>,
) -> Result<Config, Error> {
    let mut warnings = options.warnings.clone();
    let flags = flags(options, read)?;
    let resolve = |name: &str| accounts::parse_number(&read(GROUP).ok()?, name);
    let (settings, warning) = parse_flags(&flags, &resolve)?;
    warnings.extend(warning);
    let mode = options.text(IptablesSetting::Mode);
    if !matches!(mode, "" | "REDIRECT" | "TPROXY" | "NONE") {
        let mode = Quoted::new(mode);
        warnings.push(format!(
            "--istio-inbound-interception-mode: {mode} is not REDIRECT, TPROXY or NONE; REDIRECT is used"
        ));
    }
    let native = options.on(IptablesSetting::NativeNftables);
    let variant = variant(options.text(IptablesSetting::ForceIptablesBinary))?;
    if native && variant.is_some() {
        warnings.push("--force-iptables-binary has no effect with --native-nftables".to_owned());
    }
    let probe = Probe {
        port: options.port(IptablesSetting::ProbePort)?,
        timeout: options.time(IptablesSetting::ProbeTimeout)?,
    };
    let namespace = options.text(IptablesSetting::NetworkNamespace);
    Ok(Config {
        settings,
        job: job(options),
        backend: if native { Backend::Nftables } else { Backend::Iptables },
        variant,
        namespace: (!namespace.is_empty()).then(|| PathBuf::from(namespace)),
        dry_run: options.on(IptablesSetting::DryRun),
        probe: (options.on(IptablesSetting::RunValidation) && mode != "NONE").then_some(probe),
        warnings,
    })
}

/// The order of the questions is the original's.
fn job(options: &IptablesOptions) -> RulesJob {
    if options.on(IptablesSetting::SkipRuleApply) {
        RulesJob::Skip { why: "--skip-rule-apply" }
    } else if options.on(IptablesSetting::CleanupOnly) {
        RulesJob::Cleanup
    } else if options.text(IptablesSetting::Mode) == "NONE" {
        RulesJob::Skip { why: "interception mode NONE" }
    } else {
        RulesJob::Apply { force: options.on(IptablesSetting::ForceApply) }
    }
}

fn variant(text: &str) -> Result<Option<Variant>, Error> {
    match text {
        "" => Ok(None),
        "legacy" => Ok(Some(Variant::Legacy)),
        "nft" => Ok(Some(Variant::Nft)),
        other => Err(Error::Variant(Quoted::new(other))),
    }
}

fn flags(
    options: &IptablesOptions,
    read: &dyn Fn(&str) -> io::Result<String>,
) -> Result<IptablesFlags, Error> {
    let text = |setting| options.text(setting).to_owned();
    let proxy_uid = match options.text(IptablesSetting::ProxyUid) {
        "" => proxy_uid(options.text(IptablesSetting::EnvoyUser), read),
        uid => uid.to_owned(),
    };
    let proxy_gid = match options.text(IptablesSetting::ProxyGid) {
        "" => proxy_uid.clone(),
        gid => gid.to_owned(),
    };
    let (redirect_dns, capture_all_dns) =
        (options.on(IptablesSetting::RedirectDns), options.on(IptablesSetting::CaptureAllDns));
    let dns_servers = if redirect_dns && !capture_all_dns {
        parse_nameservers(&read(RESOLV_CONF).map_err(Error::ResolvConf)?)
    } else {
        Vec::new()
    };
    Ok(IptablesFlags {
        proxy_port: text(IptablesSetting::ProxyPort),
        inbound_capture_port: text(IptablesSetting::CapturePort),
        inbound_tunnel_port: text(IptablesSetting::TunnelPort),
        proxy_uid,
        proxy_gid,
        inbound_interception_mode: text(IptablesSetting::Mode),
        inbound_tproxy_mark: text(IptablesSetting::TproxyMark),
        inbound_tproxy_route_table: text(IptablesSetting::TproxyTable),
        inbound_ports_include: text(IptablesSetting::InboundPorts),
        inbound_ports_exclude: text(IptablesSetting::InboundPortsExcluded),
        owner_groups_include: text(IptablesSetting::OwnerGroups),
        owner_groups_exclude: text(IptablesSetting::OwnerGroupsExcluded),
        outbound_ports_include: text(IptablesSetting::OutboundPorts),
        outbound_ports_exclude: text(IptablesSetting::OutboundPortsExcluded),
        outbound_ip_ranges_include: text(IptablesSetting::Ranges),
        outbound_ip_ranges_exclude: text(IptablesSetting::RangesExcluded),
        reroute_virtual_interfaces: text(IptablesSetting::RerouteInterfaces),
        exclude_interfaces: text(IptablesSetting::ExcludedInterfaces),
        host_ipv4_loopback_cidr: text(IptablesSetting::Loopback),
        redirect_dns,
        capture_all_dns,
        drop_invalid: options.on(IptablesSetting::DropInvalid),
        dual_stack: options.on(IptablesSetting::DualStack),
        dns_servers,
    })
}

/// Without the user, or without a file of users, the proxy's usual number.
fn proxy_uid(user: &str, read: &dyn Fn(&str) -> io::Result<String>) -> String {
    let known = read(PASSWD).ok().and_then(|text| accounts::parse_number(&text, user));
    known.unwrap_or(PROXY_ID).to_string()
}

/// Settings whose plan has every step that any plan with the same mark and table has, for removing all of them.
pub(crate) fn widest(settings: &Settings) -> Settings {
    Settings { mode: Mode::Tproxy, inbound_ports: PortChoice::All, ..settings.clone() }
}
