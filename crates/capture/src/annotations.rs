//! A captured pod's annotations and proxy variables, parsed into [`Settings`] (spec A.1 and A.2).

use crate::pod::{Container, Pod};
use crate::settings::{
    CAPTURE_PORT, DnsCapture, Mode, OwnerGroups, PROXY_ID, PROXY_PORT, PortChoice, Prefixes, Ranges,
    Settings, default_loopback,
};
use crate::values::{
    GroupList, MAX_RULES, Quoted, ValueError, parse_bool, parse_id, parse_interfaces, parse_loopback,
    parse_owner_groups, parse_port, parse_ports, parse_prefixes, parse_ranges, printable,
};

/// The port of Istio's agent in the pod, excluded by default in both directions.
pub const AGENT_PORT: u16 = 15020;

/// Ports that the proxy and Istio's agent serve to the outside themselves: telemetry merge, readiness, Envoy's metrics.
pub const ALWAYS_EXCLUDED_INBOUND: [u16; 3] = [AGENT_PORT, 15021, 15090];

/// The annotation without which a pod is not captured: the injector wrote its status there.
pub const STATUS: &str = "sidecar.istio.io/status";
/// The label, or else annotation, that turns injection off.
pub const INJECT: &str = "sidecar.istio.io/inject";

/// Every variable of the proxy's container that is read; the others are its own affairs.
pub const PROXY_VARIABLES: [&str; 4] = [DNS_CAPTURE, DUAL_STACK, INVALID_DROP, DISABLE_ENVOY];
const DNS_CAPTURE: &str = "ISTIO_META_DNS_CAPTURE";
const DUAL_STACK: &str = "ISTIO_DUAL_STACK";
const INVALID_DROP: &str = "INVALID_DROP";
pub(crate) const DISABLE_ENVOY: &str = "DISABLE_ENVOY";

const MODE: &str = "sidecar.istio.io/interceptionMode";
const INCLUDE_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
const EXCLUDE_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
const EXCLUDE_INBOUND: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const INCLUDE_INBOUND: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const EXCLUDE_OUTBOUND: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const INCLUDE_OUTBOUND: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";

/// Forms of older releases, still read.
const PROXY_UID: &str = "sidecar.istio.io/proxUID";
const PROXY_GID: &str = "sidecar.istio.io/proxGID";
const INBOUND_PORT: &str = "traffic.sidecar.istio.io/inboundInterceptPort";
const OUTBOUND_PORT: &str = "traffic.sidecar.istio.io/outboundInterceptPort";

/// An annotation whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "annotation value error for value {setting}; annotationFound = true: {cause} (annotation {annotation} of pod \
     {pod}; correct it and create the pod again)"
)]
pub struct AnnotationError {
    /// Upstream's internal name of the setting, which people search for.
    pub setting: &'static str,
    /// Annotation.
    pub annotation: &'static str,
    /// `namespace/name`, control characters escaped.
    pub pod: String,
    /// Cause.
    pub cause: ValueError,
}

/// Annotations, and a label, that say how a running pod is captured: what people change.
pub const CAPTURE_KEYS: [&str; 11] = [
    STATUS,
    INJECT,
    MODE,
    INCLUDE_RANGES,
    EXCLUDE_RANGES,
    EXCLUDE_INBOUND,
    INCLUDE_INBOUND,
    EXCLUDE_OUTBOUND,
    INCLUDE_OUTBOUND,
    EXCLUDE_INTERFACES,
    REROUTE_INTERFACES,
];

/// A variable of the plugin's own process that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("environment variable {variable} of the container runtime: {cause}")]
pub struct EnvironmentError {
    /// Variable.
    pub variable: &'static str,
    /// Cause.
    pub cause: ValueError,
}

/// What the environment of the process that programs the rules adds to every pod. The pod's own variables of the same
/// names do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    /// `ISTIO_OUTBOUND_OWNER_GROUPS` and `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`.
    pub owner_groups: OwnerGroups,
    /// `ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`.
    pub loopback_v4: ipnet::Ipv4Net,
}

/// A pod's settings, and what its owner should know about how they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodSettings {
    /// The pod asks for no interception at all.
    None,
    /// Capture.
    Capture {
        /// Settings.
        settings: Box<Settings>,
        /// Texts for the log.
        warnings: Vec<String>,
    },
}

impl NodeSettings {
    /// Reads the three variables through `env`; group names are looked up by `resolve`.
    ///
    /// # Errors
    /// A variable has a value that cannot be used.
    pub fn from_env(
        env: &dyn Fn(&str) -> Option<String>,
        resolve: &dyn Fn(&str) -> Option<u32>,
    ) -> Result<Self, EnvironmentError> {
        const INCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
        const EXCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE";
        const LOOPBACK: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
        let include = env(INCLUDE).unwrap_or_else(|| "*".to_owned());
        let exclude = env(EXCLUDE).unwrap_or_default();
        let owner_groups = parse_owner_groups(&include, &exclude, resolve).map_err(|(list, cause)| {
            EnvironmentError { variable: if list == GroupList::Include { INCLUDE } else { EXCLUDE }, cause }
        })?;
        let loopback_v4 = match env(LOOPBACK) {
            Some(text) => {
                parse_loopback(&text).map_err(|cause| EnvironmentError { variable: LOOPBACK, cause })?
            }
            None => default_loopback(),
        };
        Ok(Self { owner_groups, loopback_v4 })
    }
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self { owner_groups: OwnerGroups::AllBut(Vec::new()), loopback_v4: default_loopback() }
    }
}

/// Parses the annotations and proxy variables of a pod. `proxy` are its containers of that name, init containers first.
///
/// # Errors
/// The first annotation, in the order in which they are read, whose value cannot be used.
pub fn parse_settings(
    pod: &Pod,
    proxy: &[&Container],
    node: &NodeSettings,
) -> Result<PodSettings, AnnotationError> {
    let read = Reader { pod };
    let mut warnings = Vec::new();
    let Some(mode) = read.parse("redirectMode", MODE, parse_mode)?.unwrap_or(Some(Mode::Redirect)) else {
        return Ok(PodSettings::None);
    };
    let outbound_ranges = read.parse("includeIPCidrs", INCLUDE_RANGES, parse_ranges)?.unwrap_or(Ranges::All);
    let outbound_ranges_excluded =
        read.parse("excludeIPCidrs", EXCLUDE_RANGES, parse_prefixes)?.unwrap_or_else(Prefixes::default);
    let inbound_excluded = read.parse("excludeInboundPorts", EXCLUDE_INBOUND, parse_ports)?;
    let inbound_ports =
        read.parse("includeInboundPorts", INCLUDE_INBOUND, parse_ports)?.unwrap_or(PortChoice::All);
    let outbound_ports_excluded = read
        .parse("excludeOutboundPorts", EXCLUDE_OUTBOUND, parse_ports)?
        .unwrap_or_else(|| PortChoice::Only(vec![AGENT_PORT]));
    let outbound_ports =
        read.parse("includeOutboundPorts", INCLUDE_OUTBOUND, parse_ports)?.unwrap_or_else(PortChoice::none);
    let excluded_interfaces =
        read.parse("excludeInterfaces", EXCLUDE_INTERFACES, parse_interfaces)?.unwrap_or_default();
    let reroute_interfaces = reroute_interfaces(&read, &mut warnings)?;
    check_product(pod, &reroute_interfaces, &outbound_ranges)?;
    let proxy_port = older_port(&read, OUTBOUND_PORT, "outboundInterceptPort", PROXY_PORT, &mut warnings)?;
    let capture_port = older_port(&read, INBOUND_PORT, "inboundInterceptPort", CAPTURE_PORT, &mut warnings)?;
    let (user, group) = stated_ids(pod, proxy);
    let proxy_uid = proxy_id(&read, user, PROXY_UID, "proxyUID", &mut warnings)?;
    let proxy_gid = proxy_id(&read, group, PROXY_GID, "proxyGID", &mut warnings)?;
    if mode == Mode::Tproxy && user == Some(i64::from(proxy_uid)) {
        warnings.push(format!(
            "interceptionMode is TPROXY and the proxy runs as user {proxy_uid}, whose connections to the application, with the \
             client's address as their source, come back to the proxy; run it as user 0 with group {proxy_gid}, as the injector does"
        ));
    }
    let mut env = |name| proxy_flag(proxy, name, &mut warnings);
    let settings = Settings {
        proxy_port,
        capture_port,
        proxy_uids: vec![proxy_uid],
        proxy_gids: vec![proxy_gid],
        mode,
        inbound_ports,
        inbound_ports_excluded: merge_excluded(inbound_excluded),
        outbound_ports,
        outbound_ports_excluded,
        outbound_ranges,
        outbound_ranges_excluded,
        owner_groups: node.owner_groups.clone(),
        reroute_interfaces,
        excluded_interfaces,
        dns: if env(DNS_CAPTURE) { DnsCapture::All } else { DnsCapture::Off },
        dual_stack: env(DUAL_STACK),
        drop_invalid: env(INVALID_DROP),
        loopback_v4: node.loopback_v4,
        ..Settings::default()
    };
    Ok(PodSettings::Capture { settings: Box::new(settings), warnings })
}

/// `REDIRECT`, `TPROXY`, or `NONE` as no mode.
///
/// # Errors
/// Anything else.
pub fn parse_mode(text: &str) -> Result<Option<Mode>, ValueError> {
    match text {
        "REDIRECT" => Ok(Some(Mode::Redirect)),
        "TPROXY" => Ok(Some(Mode::Tproxy)),
        "NONE" => Ok(None),
        _ => Err(ValueError::Mode { value: Quoted::new(text) }),
    }
}

/// The annotations of one pod.
struct Reader<'a> {
    pod: &'a Pod,
}

impl Reader<'_> {
    fn has(&self, annotation: &str) -> bool {
        self.pod.annotations.contains_key(annotation)
    }

    /// A present annotation is used as it is, also when empty.
    fn parse<T>(
        &self,
        setting: &'static str,
        annotation: &'static str,
        parse: impl Fn(&str) -> Result<T, ValueError>,
    ) -> Result<Option<T>, AnnotationError> {
        let Some(text) = self.pod.annotations.get(annotation) else { return Ok(None) };
        parse(text).map(Some).map_err(|cause| AnnotationError {
            setting,
            annotation,
            pod: printable(&format!("{}/{}", self.pod.namespace, self.pod.name)),
            cause,
        })
    }
}

fn reroute_interfaces(read: &Reader<'_>, warnings: &mut Vec<String>) -> Result<Vec<String>, AnnotationError> {
    // Present but empty still takes the place of the older one.
    if let Some(names) = read.parse("reroute-virtual-interfaces", REROUTE_INTERFACES, parse_interfaces)? {
        return Ok(names);
    }
    let names = read.parse("kubevirtInterfaces", KUBEVIRT_INTERFACES, parse_interfaces)?;
    if names.is_some() {
        warnings.push(format!("annotation {KUBEVIRT_INTERFACES} is deprecated; use {REROUTE_INTERFACES}"));
    }
    Ok(names.unwrap_or_default())
}

/// Two short lists must not make the node load a million rules.
fn check_product(pod: &Pod, interfaces: &[String], ranges: &Ranges) -> Result<(), AnnotationError> {
    let Ranges::Only(prefixes) = ranges else { return Ok(()) };
    let ranges = prefixes.v4.len() + prefixes.v6.len();
    if interfaces.len().saturating_mul(ranges) < MAX_RULES {
        return Ok(());
    }
    Err(AnnotationError {
        setting: "reroute-virtual-interfaces",
        annotation: REROUTE_INTERFACES,
        pod: format!("{}/{}", pod.namespace, pod.name),
        cause: ValueError::TooManyRules { interfaces: interfaces.len(), ranges },
    })
}

fn older_port(
    read: &Reader<'_>,
    annotation: &'static str,
    setting: &'static str,
    default: u16,
    warnings: &mut Vec<String>,
) -> Result<u16, AnnotationError> {
    if read.has(annotation) {
        warnings.push(format!(
            "annotation {annotation} is of an older release; its value replaces port {default}"
        ));
    }
    Ok(read.parse(setting, annotation, parse_port)?.unwrap_or(default))
}

/// User and group that the proxy runs as, as far as the pod says them: its container's, else the pod's, each by itself. Of several containers
/// the last one that says it counts.
pub(crate) fn stated_ids(pod: &Pod, proxy: &[&Container]) -> (Option<i64>, Option<i64>) {
    let last = |of: fn(&Container) -> Option<i64>| proxy.iter().rev().find_map(|container| of(container));
    (last(|c| c.run_as_user).or(pod.run_as_user), last(|c| c.run_as_group).or(pod.run_as_group))
}

/// The id whose traffic is the proxy's: what the pod states, unless that is 0; else the older annotation; else the default.
///
/// What is stated comes first because the kernel looks at the real owner of a socket: rules for another id would send the proxy's
/// own connections back to it without end.
fn proxy_id(
    read: &Reader<'_>,
    stated: Option<i64>,
    annotation: &'static str,
    setting: &'static str,
    warnings: &mut Vec<String>,
) -> Result<u32, AnnotationError> {
    let annotated = read.parse(setting, annotation, parse_id)?;
    // Kubernetes admits no id that does not fit; one from elsewhere is treated as if it were not there.
    let stated = stated.filter(|id| *id != 0).and_then(|id| u32::try_from(id).ok());
    match (annotated, stated) {
        (Some(annotated), Some(stated)) if annotated != stated => warnings.push(format!(
            "annotation {annotation} says {annotated}, but the proxy's container runs as {stated}, which is used"
        )),
        (Some(_), _) => warnings.push(format!(
            "annotation {annotation} is of an older release; set runAsUser and runAsGroup of the proxy's container"
        )),
        _ => {}
    }
    Ok(stated.or(annotated.filter(|id| *id != 0)).unwrap_or(PROXY_ID))
}

/// A boolean variable of the proxy's containers; later entries overwrite earlier ones.
fn proxy_flag(proxy: &[&Container], name: &str, warnings: &mut Vec<String>) -> bool {
    let Some(text) = proxy_variable(proxy, name) else { return false };
    parse_bool(text).unwrap_or_else(|| {
        warnings.push(format!(
            "proxy variable {name} is {}, which is not a boolean; taken as false",
            Quoted::new(text)
        ));
        false
    })
}

/// The value of a variable on the proxy's containers; later entries overwrite earlier ones.
pub(crate) fn proxy_variable<'a>(proxy: &[&'a Container], name: &str) -> Option<&'a str> {
    proxy
        .iter()
        .flat_map(|container| &container.env)
        .rfind(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

/// The annotated ports, then those that are always excluded.
fn merge_excluded(annotated: Option<PortChoice>) -> PortChoice {
    match annotated {
        Some(PortChoice::All) => PortChoice::All,
        Some(PortChoice::Only(mut ports)) => {
            for port in ALWAYS_EXCLUDED_INBOUND {
                if !ports.contains(&port) {
                    ports.push(port);
                }
            }
            PortChoice::Only(ports)
        }
        None => PortChoice::Only(ALWAYS_EXCLUDED_INBOUND.to_vec()),
    }
}

#[cfg(test)]
mod tests;
