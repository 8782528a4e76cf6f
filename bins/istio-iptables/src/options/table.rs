//! Every setting there is: those of the original, and the logging flags that the injector passes to every program of Istio.

use capture::values::parse_port;
use cni::config::parse_duration;
use options::{Given, Spec, TextForm, TextKind};

/// A setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table below says what each one is")]
pub(crate) enum IptablesSetting {
    ProxyPort,
    CapturePort,
    TunnelPort,
    ProxyUid,
    ProxyGid,
    Mode,
    InboundPorts,
    InboundPortsExcluded,
    ExcludedInterfaces,
    Ranges,
    RangesExcluded,
    OutboundPorts,
    OutboundPortsExcluded,
    RerouteInterfaces,
    TproxyMark,
    TproxyTable,
    RedirectDns,
    CaptureAllDns,
    DropInvalid,
    DualStack,
    OwnerGroups,
    OwnerGroupsExcluded,
    Loopback,
    EnvoyUser,
    DryRun,
    SkipRuleApply,
    RunValidation,
    ProbePort,
    ProbeTimeout,
    NetworkNamespace,
    CniMode,
    Reconcile,
    CleanupOnly,
    ForceApply,
    NativeNftables,
    ForceIptablesBinary,
    LogOutputLevel,
    LogAsJson,
    LogCaller,
    LogStacktraceLevel,
    LogTarget,
}

const PORT: TextKind = TextKind::Form(&TextForm {
    placeholder: "PORT",
    expected: "a port from 1 to 65535",
    is: |text| parse_port(text).is_ok(),
});

const TIME: TextKind = TextKind::Form(&TextForm {
    placeholder: "TIME",
    expected: "a time above zero, such as 5s or 1m30s",
    is: |text| parse_duration(text).is_ok_and(|time| !time.is_zero()),
});

/// Levels of the log, by scope or for all. Scopes may be those of any program of the mesh: the injector gives all the same ones.
const LEVELS: TextKind = TextKind::Form(&TextForm {
    placeholder: "LEVELS",
    expected: "<scope>:<level> with debug, info, warn, error, fatal or none",
    is: |text| telemetry::Levels::parse(text).is_ok(),
});

/// `setting, flag, short flag, [variables], kind, default, help`; `-` means absent.
macro_rules! specs {
    (@name - $env:literal) => { $env };
    (@name $long:literal $($env:literal)*) => { $long };
    (@given - $($env:literal)+) => { Given::Variable };
    (@given $long:literal) => { Given::Flag };
    (@given $long:literal $($env:literal)+) => { Given::FlagOrVariable };
    (@short -) => { None };
    (@short $short:literal) => { Some($short) };
    (@kind Text) => { TextKind::Text };
    (@kind Switch) => { TextKind::Switch };
    (@kind Port) => { PORT };
    (@kind Time) => { TIME };
    (@kind Levels) => { LEVELS };
    ($($setting:ident $long:tt $short:tt [$($env:literal),*] $kind:ident $default:literal $help:literal;)*) => {
        /// Every setting, in the order of the help.
        pub(crate) const SPECS: &[Spec<IptablesSetting>] = &[$(Spec {
            setting: IptablesSetting::$setting,
            name: specs!(@name $long $($env)*),
            short: specs!(@short $short),
            given: specs!(@given $long $($env)*),
            env: &[$($env),*],
            kind: specs!(@kind $kind),
            default: $default,
            help: $help,
        }),*];
    };
}

specs! {
    ProxyPort "envoy-port" 'p' [] Text "15001"
        "Port where the proxy takes outbound TCP connections";
    CapturePort "inbound-capture-port" 'z' ["INBOUND_CAPTURE_PORT"] Text "15006"
        "Port where the proxy takes inbound TCP connections";
    TunnelPort "inbound-tunnel-port" 'e' ["INBOUND_TUNNEL_PORT"] Text "15008"
        "Port of tunnels, which the proxy serves itself";
    ProxyUid "proxy-uid" 'u' ["PROXY_UID"] Text ""
        "Users whose traffic is the proxy's own [default: the user that ENVOY_USER names, else 1337]";
    ProxyGid "proxy-gid" 'g' ["PROXY_GID"] Text ""
        "Groups whose traffic is the proxy's own [default: the same number as --proxy-uid]";
    Mode "istio-inbound-interception-mode" 'm' ["ISTIO_INBOUND_INTERCEPTION_MODE"] Text ""
        "How inbound connections are captured: REDIRECT (also when empty), TPROXY or NONE";
    InboundPorts "istio-inbound-ports" 'b' ["ISTIO_INBOUND_PORTS"] Text ""
        "Inbound ports that are captured: a list, or * for all; empty captures none";
    InboundPortsExcluded "istio-local-exclude-ports" 'd' ["ISTIO_LOCAL_EXCLUDE_PORTS"] Text ""
        "Inbound ports that are not captured where all others are";
    ExcludedInterfaces "istio-exclude-interfaces" 'c' ["ISTIO_EXCLUDE_INTERFACES"] Text ""
        "Interfaces that are left alone in both directions";
    Ranges "istio-service-cidr" 'i' ["ISTIO_SERVICE_CIDR"] Text ""
        "Outbound destinations that are captured: a list of CIDRs, or * for all; empty captures none";
    RangesExcluded "istio-service-exclude-cidr" 'x' ["ISTIO_SERVICE_EXCLUDE_CIDR"] Text ""
        "Outbound destinations that are not captured: a list of CIDRs";
    OutboundPorts "istio-outbound-ports" 'q' ["ISTIO_OUTBOUND_PORTS"] Text ""
        "Outbound ports that are captured whatever the destination's address";
    OutboundPortsExcluded "istio-local-outbound-ports-exclude" 'o' ["ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"] Text ""
        "Outbound ports that are not captured";
    RerouteInterfaces "kube-virt-interfaces" 'k' ["KUBE_VIRT_INTERFACES"] Text ""
        "Interfaces whose inbound traffic is the outbound traffic of a virtual machine behind them";
    TproxyMark "istio-inbound-tproxy-mark" 't' ["ISTIO_INBOUND_TPROXY_MARK"] Text "1337"
        "Mark of packets for the transparent inbound socket";
    TproxyTable "istio-inbound-tproxy-route-table" 'r' ["ISTIO_INBOUND_TPROXY_ROUTE_TABLE"] Text "133"
        "Routing table that makes marked packets local";
    RedirectDns "redirect-dns" - ["REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"] Switch "false"
        "Send DNS queries to the proxy's resolver";
    CaptureAllDns "capture-all-dns" - ["CAPTURE_ALL_DNS"] Switch "false"
        "With --redirect-dns: queries to every server, not only to those of resolv.conf";
    DropInvalid "drop-invalid" - ["DROP_INVALID", "INVALID_DROP"] Switch "false"
        "Drop packets that fit no connection";
    DualStack "dual-stack" - ["DUAL_STACK", "ISTIO_DUAL_STACK"] Switch "false"
        "Capture IPv6 if the pod has any IPv6 address, rather than only if its first address is one";
    OwnerGroups - - ["ISTIO_OUTBOUND_OWNER_GROUPS"] Text "*"
        "Groups, by number or name, whose outbound traffic is captured; * for all";
    OwnerGroupsExcluded - - ["ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"] Text ""
        "Groups whose outbound traffic is not captured where that of all others is";
    Loopback - - ["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"] Text "127.0.0.1/32"
        "IPv4 addresses that count as the pod's own loopback";
    EnvoyUser - - ["ENVOY_USER"] Text "istio-proxy"
        "The proxy's user by name, looked up in /etc/passwd where --proxy-uid is empty";
    DryRun "dry-run" 'n' ["DRY_RUN"] Switch "false"
        "Print what would be loaded on stdout and change nothing";
    SkipRuleApply "skip-rule-apply" - ["SKIP_RULE_APPLY"] Switch "false"
        "Leave the rules as they are";
    RunValidation "run-validation" - ["RUN_VALIDATION"] Switch "false"
        "Try with a connection whether the redirection works; needs no privileges, but the proxy's user or group";
    ProbePort "iptables-probe-port" - ["IPTABLES_PROBE_PORT"] Port "15002"
        "Port that the validation connects to";
    ProbeTimeout "probe-timeout" - ["PROBE_TIMEOUT"] Time "5s"
        "How long the validation waits";
    NetworkNamespace "network-namespace" - ["NETWORK_NAMESPACE"] Text ""
        "Path of the network namespace to work in [default: the own one]";
    CniMode "cni-mode" - ["CNI_MODE"] Switch "false"
        "Accepted; what it asks for is always done";
    Reconcile "reconcile" - ["RECONCILE"] Switch "false"
        "Accepted; rules that differ are always replaced, without a gap";
    CleanupOnly "cleanup-only" - ["CLEANUP_ONLY"] Switch "false"
        "Remove rules and routing of ours and apply none; the other flags are those that they were applied with";
    ForceApply "force-apply" - ["FORCE_APPLY"] Switch "false"
        "Apply the rules without looking first whether they are there";
    NativeNftables "native-nftables" - ["NATIVE_NFTABLES"] Switch "false"
        "Use nf_tables, without any program, instead of iptables";
    ForceIptablesBinary "force-iptables-binary" - ["FORCE_IPTABLES_BINARY"] Text ""
        "The variant of iptables to use: legacy or nft [default: the one with rules, else nft]";
    LogOutputLevel "log_output_level" - [] Levels "info"
        "Least level of log lines: debug, info, warn, error, fatal or none, also as default:debug or all:debug";
    LogAsJson "log_as_json" - [] Switch "true"
        "Accepted; log lines are always JSON";
    LogCaller "log_caller" - [] Text ""
        "Accepted, without effect";
    LogStacktraceLevel "log_stacktrace_level" - [] Text ""
        "Accepted, without effect";
    LogTarget "log_target" - [] Text ""
        "Accepted; log lines always go to stderr";
}
