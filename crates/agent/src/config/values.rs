//! Options whose text has to mean something: one function for each, with what is wrong with a text that does not.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use capture::annotations::NodeSettings;
use capture::select::{Selectors, is_dns_label, is_dns_subdomain, is_label_key, is_label_value};
use capture::values::{Quoted, parse_bool};
use cni::PluginConf;
use cni::json::Value;
use facts::Selector;
use facts::broken::BrokenRules;
use facts::fields::FieldSelector;
use facts::labels::parse_selector;
use install::ProgramAtEnd;
use intent::live::LiveUpdates;
use serde_json::Map;
use telemetry::Levels;

use super::CleanupAtEnd;
use crate::sidecars::{RepairMode, RepairOptions, RepairTrigger};
use crate::taint::TaintMode;
use options::agent::{BadOption, Lookup, Options, Setting};

/// Scopes of the log that have a level of their own: ours, then those of the original's programs, which a command line for it may name.
const SCOPES: [&str; 16] = [
    "default",
    "cni-agent",
    "cni-plugin",
    "ambient",
    "verification",
    "conflicts",
    "policies",
    "policy", // ours
    "cni",
    "controllers",
    "grpc",
    "install",
    "klog",
    "krt",
    "kube",
    "repair",
];

/// The backend that is asked for: nf_tables, iptables, or what the node has.
///
/// # Errors
/// The text is something else. Rules in a backend that somebody did not mean would be found late.
pub(crate) fn native_nftables(options: &Options) -> Result<Option<bool>, BadOption> {
    match options.text(Setting::NativeNftables) {
        "auto" | "" => Ok(None),
        text => parse_bool(text)
            .map(Some)
            .ok_or_else(|| BadOption::new("native-nftables", text, "is not true, false or auto")),
    }
}

/// What a change of a running pod does.
///
/// # Errors
/// The text is something else.
pub(crate) fn live_updates(options: &Options) -> Result<LiveUpdates, BadOption> {
    let text = options.text(Setting::LiveUpdates);
    if text.is_empty() {
        return Ok(LiveUpdates::default());
    }
    LiveUpdates::parse(text).ok_or_else(|| BadOption::new("live-updates", text, "is not off, safe or on"))
}

/// How often counters of tenants' pods are read; nothing where they are not.
///
/// # Errors
/// The options mean nothing, or not together.
pub(crate) fn usage(options: &Options) -> Result<Option<Duration>, BadOption> {
    let (word, text) = (options.text(Setting::Usage), options.text(Setting::UsageInterval));
    let interval = duration("usage-interval", text)?;
    if !(Duration::from_secs(1)..=Duration::from_secs(600)).contains(&interval) {
        return Err(BadOption::new("usage-interval", text, "is not between 1s and 10m"));
    }
    match word {
        "off" => Ok(None),
        "on" if options.text(Setting::TenantsEnforcement) == "on" => Ok(Some(interval)),
        "on" => {
            let why =
                "needs tenants-enforcement on beside it: what is counted is the traffic of tenants' pods";
            Err(BadOption::new("usage", word, why))
        }
        _ => Err(BadOption::new("usage", word, "is not off or on")),
    }
}

/// A time such as 30s; 0 is none.
///
/// # Errors
/// The text is not one.
pub(crate) fn duration(name: &'static str, text: &str) -> Result<Duration, BadOption> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    cni::config::parse_duration(text).map_err(|error| BadOption::new(name, text, error.to_string()))
}

/// Levels of the log.
///
/// # Errors
/// They mean nothing, or are for a scope that no program of the mesh on this node has.
pub(crate) fn levels(options: &Options) -> Result<Levels, BadOption> {
    let text = options.text(Setting::LogOutputLevel);
    let bad = |problem: String| BadOption::new("log_output_level", text, problem);
    let levels = Levels::parse(text).map_err(|error| bad(error.to_string()))?;
    if let Some(scope) = levels.scopes().find(|scope| !SCOPES.contains(scope)) {
        let problem = format!("names the scope {scope:?}, which is not one of all, {}", SCOPES.join(", "));
        return Err(bad(problem));
    }
    Ok(levels)
}

/// A directory that the plugin must find, too.
///
/// # Errors
/// It is not an absolute path.
pub(super) fn absolute_dir(
    options: &Options,
    setting: Setting,
    name: &'static str,
) -> Result<PathBuf, BadOption> {
    let text = options.text(setting);
    if Path::new(text).is_absolute() {
        return Ok(text.into());
    }
    Err(BadOption::new(name, text, "is not an absolute path"))
}

/// Namespaces whose pods are left alone.
///
/// # Errors
/// An item cannot be a namespace: with it the pods of another one would be captured.
pub(crate) fn excluded_namespaces(options: &Options) -> Result<Vec<String>, BadOption> {
    names(options, Setting::ExcludeNamespaces, "exclude-namespaces", is_dns_label, "a namespace")
}

/// Runtime classes whose pods use the kernel's network stack, whatever their names say; sidecar and ambient mode go by them.
///
/// # Errors
/// An item cannot be the name of a runtime class.
pub(crate) fn kernel_network_runtime_classes(options: &Options) -> Result<Vec<String>, BadOption> {
    let setting = Setting::KernelNetworkRuntimeClasses;
    names(options, setting, "kernel-network-runtime-classes", is_dns_subdomain, "a runtime class")
}

/// A list of names, each of which has to be one.
fn names(
    options: &Options,
    setting: Setting,
    option: &'static str,
    is_name: fn(&str) -> bool,
    of_what: &str,
) -> Result<Vec<String>, BadOption> {
    let names = options.list(setting);
    match names.iter().find(|name| !is_name(name)) {
        None => Ok(names),
        Some(name) => Err(BadOption::new(
            option,
            options.text(setting),
            format!(
                "has the item {}, which is not the name of {of_what}; give names with commas between",
                Quoted::new(name)
            ),
        )),
    }
}

/// The name of a namespace; it may be empty.
///
/// # Errors
/// The text cannot be one.
pub(crate) fn namespace(
    options: &Options,
    setting: Setting,
    name: &'static str,
) -> Result<String, BadOption> {
    let text = options.text(setting);
    if text.is_empty() || is_dns_label(text) {
        return Ok(text.to_owned());
    }
    Err(BadOption::new(name, text, "is not the name of a namespace"))
}

/// What is done about the node's taint, and its key.
///
/// # Errors
/// The word is another one, or the key cannot be a taint's.
pub(super) fn taint(options: &Options) -> Result<(TaintMode, String), BadOption> {
    let (word, key) = (options.text(Setting::NodeTaint), options.text(Setting::NodeTaintKey));
    if !is_label_key(key) {
        return Err(BadOption::new("node-taint-key", key, "is not the key of a taint"));
    }
    let mode = match word {
        "off" | "" => TaintMode::Off,
        "remove" => TaintMode::Remove,
        "manage" => TaintMode::Manage,
        _ => return Err(BadOption::new("node-taint", word, "is not off, remove or manage")),
    };
    Ok((mode, key.to_owned()))
}

pub(super) fn broken_pod_label(options: &Options) -> Result<(String, String), BadOption> {
    let key = options.text(Setting::RepairBrokenPodLabelKey);
    let value = options.text(Setting::RepairBrokenPodLabelValue);
    if !is_label_key(key) {
        return Err(BadOption::new("repair-broken-pod-label-key", key, "is not the key of a label"));
    }
    if !is_label_value(value) {
        return Err(BadOption::new("repair-broken-pod-label-value", value, "is not the value of a label"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// What is done about sidecar pods that run without capture. Repair goes before deletion, and that before the label.
///
/// # Errors
/// An option means nothing, or is for pods that this agent does not see.
pub(super) fn repair(options: &Options, node: &str) -> Result<RepairOptions, BadOption> {
    let text = |setting| options.text(setting);
    let modes = [
        (Setting::RepairRepairPods, RepairMode::Repair),
        (Setting::RepairDeletePods, RepairMode::Delete),
        (Setting::RepairLabelPods, RepairMode::Label),
    ];
    let chosen = modes.into_iter().find(|(setting, _)| options.on(*setting)).map(|(_, mode)| mode);
    let trigger = match text(Setting::RepairTrigger) {
        "kernel" | "" => RepairTrigger::Kernel,
        "crash" => RepairTrigger::Crash,
        other => return Err(BadOption::new("repair-trigger", other, "is neither kernel nor crash")),
    };
    let of = text(Setting::RepairNodeName);
    if !of.is_empty() && of != node {
        let problem =
            format!("is not the node of this agent, {node}, whose pods are the only ones that it sees");
        return Err(BadOption::new("repair-node-name", of, problem));
    }
    let labels = match text(Setting::RepairLabelSelectors) {
        "" => Selector::default(),
        text => {
            parse_selector(text).map_err(|error| BadOption::new("repair-label-selectors", text, error))?
        }
    };
    let fields = text(Setting::RepairFieldSelectors);
    let fields = FieldSelector::parse(fields)
        .map_err(|error| BadOption::new("repair-field-selectors", fields, error))?;
    let exit_code = options.number(Setting::RepairInitContainerExitCode);
    let exit_code = i32::try_from(exit_code).map_err(|_| {
        BadOption::new("repair-init-container-exit-code", &exit_code.to_string(), "is no exit code")
    })?;
    Ok(RepairOptions {
        mode: chosen.filter(|_| options.on(Setting::RepairEnabled)).unwrap_or_default(),
        trigger,
        broken: BrokenRules {
            annotation: text(Setting::RepairSidecarAnnotation).to_owned(),
            container: text(Setting::RepairInitContainerName).to_owned(),
            message: text(Setting::RepairInitContainerTerminationMessage).to_owned(),
            exit_code,
        },
        labels,
        fields,
    })
}

/// What the environment says of sidecars' settings. The plugin reads the same variables in the runtime's environment.
///
/// # Errors
/// A variable means nothing.
pub(super) fn sidecar_settings(env: Lookup<'_>) -> Result<NodeSettings, BadOption> {
    // Names of groups are those of the node, which this process does not see: they are left out.
    NodeSettings::from_env(&|name| env(name), &|_| None)
        .map_err(|error| BadOption::new("ISTIO_OUTBOUND_*", "", error.to_string()))
}

/// The plugin has the last word on what its keys may be, so it is asked.
pub(super) fn checked(
    name: &'static str,
    value: &str,
    entry: &Map<String, serde_json::Value>,
) -> Result<PluginConf, BadOption> {
    let bad = |problem: String| BadOption::new(name, value, format!("cannot be used: {problem}"));
    let text = serde_json::to_vec(entry).map_err(|error| bad(error.to_string()))?;
    let tree = Value::parse(&text).map_err(|error| bad(error.to_string()))?;
    PluginConf::decode(&tree).map_err(|error| bad(error.to_string()))
}

/// Which pods are to be in the mesh, as it is written.
///
/// # Errors
/// It is not YAML, or means nothing in Kubernetes.
pub(crate) fn selectors(options: &Options) -> Result<Vec<cni::config::EnablementSelector>, BadOption> {
    const NAME: &str = "ambient-enablement-selector";
    let text = options.text(Setting::AmbientEnablementSelector);
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let list = podsource::yaml::read(text)
        .map_err(|error| BadOption::new(NAME, text, format!("is not YAML: {error}")))?;
    let entry = Map::from_iter([("enablement_selectors".to_owned(), list)]);
    let written = checked(NAME, text, &entry)?.enablement_selectors;
    // The plugin would fail every pod by what means nothing to Kubernetes.
    Selectors::new(&written).map_err(|error| BadOption::new(NAME, text, error.to_string()))?;
    Ok(written)
}

/// Whoever mounts the node's cache directory here lets the program go; whoever does not keeps it.
pub(super) fn program_at_end(options: &Options) -> Result<ProgramAtEnd, BadOption> {
    let text = options.text(Setting::CniCacheDir);
    let on_node = PathBuf::from(text);
    let host_root = Path::new(options.text(Setting::HostRoot));
    let Ok(below_root) = on_node.strip_prefix("/") else {
        return Err(BadOption::new("cni-cache-dir", text, "is not an absolute path"));
    };
    let cache = host_root.join(below_root);
    Ok(ProgramAtEnd::StaysWhileNamed { cache, sees_node: host_root == Path::new("/"), on_node })
}

pub(super) fn cleanup(options: &Options) -> Result<CleanupAtEnd, BadOption> {
    match options.text(Setting::CleanupOnExit) {
        "always" => Ok(CleanupAtEnd::Always),
        "never" => Ok(CleanupAtEnd::Never),
        "auto" | "" if options.on(Setting::AmbientDisableSafeUpgrade) => Ok(CleanupAtEnd::Always),
        "auto" | "" => Ok(CleanupAtEnd::Auto),
        text => Err(BadOption::new("cleanup-on-exit", text, "is neither auto nor always nor never")),
    }
}

pub(super) fn address(
    options: &Options,
    setting: Setting,
    name: &'static str,
) -> Result<Option<SocketAddr>, BadOption> {
    let number = options.number(setting);
    if number <= 0 {
        return Ok(None);
    }
    let port = u16::try_from(number)
        .map_err(|_| BadOption::new(name, &number.to_string(), "is larger than 65535"))?;
    let own = (setting == Setting::HealthPort).then_some((Setting::HealthAddress, "health-address"));
    let given = own.into_iter().chain([(Setting::ListenAddress, "listen-address")]);
    for (setting, name) in given {
        let text = options.text(setting);
        if !text.is_empty() {
            let address = text.parse().map_err(|_| BadOption::new(name, text, "is not an IP address"))?;
            return Ok(Some(SocketAddr::new(address, port)));
        }
    }
    Ok(Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)))
}
