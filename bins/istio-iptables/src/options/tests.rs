use super::*;

/// Flags, short flags and variables of the original, with the logging options of Istio's programs.
const ORIGINAL: &[(&str, &str, &[&str])] = &[
    ("envoy-port", "p", &[]),
    ("inbound-capture-port", "z", &["INBOUND_CAPTURE_PORT"]),
    ("inbound-tunnel-port", "e", &["INBOUND_TUNNEL_PORT"]),
    ("proxy-uid", "u", &["PROXY_UID"]),
    ("proxy-gid", "g", &["PROXY_GID"]),
    ("istio-inbound-interception-mode", "m", &["ISTIO_INBOUND_INTERCEPTION_MODE"]),
    ("istio-inbound-tproxy-mark", "t", &["ISTIO_INBOUND_TPROXY_MARK"]),
    ("istio-inbound-tproxy-route-table", "r", &["ISTIO_INBOUND_TPROXY_ROUTE_TABLE"]),
    ("istio-inbound-ports", "b", &["ISTIO_INBOUND_PORTS"]),
    ("istio-local-exclude-ports", "d", &["ISTIO_LOCAL_EXCLUDE_PORTS"]),
    ("istio-exclude-interfaces", "c", &["ISTIO_EXCLUDE_INTERFACES"]),
    ("istio-service-cidr", "i", &["ISTIO_SERVICE_CIDR"]),
    ("istio-service-exclude-cidr", "x", &["ISTIO_SERVICE_EXCLUDE_CIDR"]),
    ("istio-outbound-ports", "q", &["ISTIO_OUTBOUND_PORTS"]),
    ("istio-local-outbound-ports-exclude", "o", &["ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"]),
    ("kube-virt-interfaces", "k", &["KUBE_VIRT_INTERFACES"]),
    ("dry-run", "n", &["DRY_RUN"]),
    ("redirect-dns", "", &["REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"]),
    ("capture-all-dns", "", &["CAPTURE_ALL_DNS"]),
    ("drop-invalid", "", &["DROP_INVALID", "INVALID_DROP"]),
    ("dual-stack", "", &["DUAL_STACK", "ISTIO_DUAL_STACK"]),
    ("cni-mode", "", &["CNI_MODE"]),
    ("skip-rule-apply", "", &["SKIP_RULE_APPLY"]),
    ("run-validation", "", &["RUN_VALIDATION"]),
    ("reconcile", "", &["RECONCILE"]),
    ("cleanup-only", "", &["CLEANUP_ONLY"]),
    ("force-apply", "", &["FORCE_APPLY"]),
    ("native-nftables", "", &["NATIVE_NFTABLES"]),
    ("iptables-probe-port", "", &["IPTABLES_PROBE_PORT"]),
    ("probe-timeout", "", &["PROBE_TIMEOUT"]),
    ("network-namespace", "", &["NETWORK_NAMESPACE"]),
    ("force-iptables-binary", "", &["FORCE_IPTABLES_BINARY"]),
    ("log_output_level", "", &[]),
    ("log_as_json", "", &[]),
    ("log_caller", "", &[]),
    ("log_stacktrace_level", "", &[]),
    ("log_target", "", &[]),
];

fn parsed(args: &[&str], env: &[(&str, &str)]) -> Result<IptablesOptions, Error> {
    let lookup = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    parse(std::iter::once("istio-iptables").chain(args.iter().copied()).map(OsString::from), &lookup)
}

fn ok(args: &[&str], env: &[(&str, &str)]) -> IptablesOptions {
    parsed(args, env).unwrap_or_else(|error| panic!("{args:?} {env:?}: {error}"))
}

fn error(args: &[&str]) -> String {
    parsed(args, &[]).expect_err("must be refused").to_string()
}

fn spec(long: &str) -> &'static Spec<IptablesSetting> {
    SPECS.iter().find(|spec| spec.flag() == Some(long)).unwrap_or_else(|| panic!("no --{long}"))
}

/// A value that is not the default.
fn other(spec: &Spec<IptablesSetting>) -> &'static str {
    match spec.kind {
        TextKind::Text => "other,-value",
        TextKind::Switch if spec.default == "true" => "false",
        TextKind::Switch => "true",
        TextKind::Form(form) if form.placeholder == "PORT" => "4711",
        TextKind::Form(form) if form.placeholder == "TIME" => "1m30s",
        TextKind::Form(_) | TextKind::Integer => "default:warn,ads:debug",
    }
}

#[test]
fn flags_and_variables_are_those_of_the_original() {
    let mine: Vec<_> = SPECS
        .iter()
        .filter_map(|spec| Some((spec.flag()?, spec.short.map(String::from).unwrap_or_default(), spec.env)))
        .collect();
    for (long, short, env) in ORIGINAL {
        assert!(mine.contains(&(long, (*short).to_owned(), env)), "--{long} -{short} {env:?}");
    }
    assert_eq!(mine.len(), ORIGINAL.len());
    let without_flag: Vec<_> = SPECS.iter().filter(|spec| spec.flag().is_none()).map(title).collect();
    assert_eq!(
        without_flag,
        [
            "ISTIO_OUTBOUND_OWNER_GROUPS",
            "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
            "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
            "ENVOY_USER"
        ]
    );
}

#[test]
fn variables_are_named_like_their_flags() {
    for spec in SPECS.iter().filter(|spec| !spec.env.is_empty()) {
        let Some(long) = spec.flag() else { continue };
        assert_eq!(spec.env[0], long.replace('-', "_").to_uppercase());
    }
}

#[test]
fn defaults_are_those_of_the_original() {
    let options = ok(&[], &[]);
    let given: Vec<(String, &str)> = SPECS
        .iter()
        .filter(|spec| !spec.kind.is_switch() && !spec.default.is_empty())
        .map(|spec| (title(spec), options.text(spec.setting)))
        .collect();
    let expected = [
        ("--envoy-port", "15001"),
        ("--inbound-capture-port", "15006"),
        ("--inbound-tunnel-port", "15008"),
        ("--istio-inbound-tproxy-mark", "1337"),
        ("--istio-inbound-tproxy-route-table", "133"),
        ("ISTIO_OUTBOUND_OWNER_GROUPS", "*"),
        ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.1/32"),
        ("ENVOY_USER", "istio-proxy"),
        ("--iptables-probe-port", "15002"),
        ("--probe-timeout", "5s"),
        ("--log_output_level", "info"),
    ];
    assert_eq!(given, expected.map(|(name, value)| (name.to_owned(), value)));
    let on: Vec<_> = SPECS.iter().filter(|spec| options.on(spec.setting)).map(|spec| spec.setting).collect();
    assert_eq!(on, [IptablesSetting::LogAsJson]);
    assert!(options.warnings.is_empty());
}

#[test]
fn every_flag_is_taken_in_every_spelling() {
    for (long, short, _) in ORIGINAL {
        let spec = spec(long);
        let value = other(spec);
        let mut spellings = vec![vec![format!("--{long}={value}")]];
        if !spec.kind.is_switch() {
            spellings.push(vec![format!("--{long}"), value.to_owned()]);
        } else if value == "true" {
            spellings.push(vec![format!("--{long}")]);
        }
        if !short.is_empty() && spec.kind.is_switch() {
            spellings.push(vec![format!("-{short}")]);
            spellings.push(vec![format!("-{short}=true")]);
        } else if !short.is_empty() {
            spellings.push(vec![format!("-{short}"), value.to_owned()]);
            spellings.push(vec![format!("-{short}{value}")]);
            spellings.push(vec![format!("-{short}={value}")]);
        }
        for spelling in spellings {
            let args: Vec<&str> = spelling.iter().map(String::as_str).collect();
            let options = ok(&args, &[]);
            assert_eq!(options.text(spec.setting), value, "{args:?}");
            for others in SPECS.iter().filter(|s| s.setting != spec.setting) {
                assert_eq!(
                    options.text(others.setting),
                    others.default,
                    "{args:?} changes {}",
                    title(others)
                );
            }
        }
    }
}

#[test]
fn every_variable_is_taken_where_the_flag_is_absent() {
    for spec in SPECS {
        for name in spec.env {
            let value = other(spec);
            assert_eq!(ok(&[], &[(name, value)]).text(spec.setting), value, "{name}");
            if let Some(long) = spec.flag() {
                let flag =
                    format!("--{long}={}", if spec.default.is_empty() { "flag" } else { spec.default });
                let options = ok(&[&flag], &[(name, value)]);
                assert_ne!(options.text(spec.setting), value, "{name} against {flag}");
            }
        }
    }
}

#[test]
fn the_later_of_two_variables_counts() {
    let both = |first, second| [("REDIRECT_DNS", first), ("ISTIO_META_DNS_CAPTURE", second)];
    assert!(!ok(&[], &both("true", "false")).on(IptablesSetting::RedirectDns));
    assert!(ok(&[], &both("false", "true")).on(IptablesSetting::RedirectDns));
    assert!(!ok(&["--redirect-dns=false"], &both("true", "true")).on(IptablesSetting::RedirectDns));
    let options = ok(&[], &both("true", "yes"));
    assert!(options.on(IptablesSetting::RedirectDns), "the other one can be read");
    assert_eq!(options.warnings.len(), 1);
}

#[test]
fn a_variable_that_cannot_be_read_is_a_warning() {
    for (name, value, setting) in [
        ("ISTIO_META_DNS_CAPTURE", "yes", IptablesSetting::RedirectDns),
        ("DRY_RUN", "", IptablesSetting::DryRun),
        ("IPTABLES_PROBE_PORT", "70000", IptablesSetting::ProbePort),
        ("PROBE_TIMEOUT", "5", IptablesSetting::ProbeTimeout),
        ("PROBE_TIMEOUT", "0s", IptablesSetting::ProbeTimeout),
    ] {
        let options = ok(&[], &[(name, value)]);
        let default = SPECS.iter().find(|spec| spec.setting == setting).map(|spec| spec.default);
        assert_eq!(Some(options.text(setting)), default, "{name}={value}");
        assert_eq!(options.warnings.len(), 1);
        assert!(options.warnings[0].contains(&format!("{name}: {value:?}")), "{:?}", options.warnings);
    }
}

#[test]
fn a_flag_that_cannot_be_read_is_an_error_that_names_it() {
    for (arg, name) in [
        ("--dry-run=perhaps", "--dry-run: \"perhaps\" is not true or false"),
        ("-n=", "--dry-run: \"\" is not true or false"),
        (
            "--log_output_level=default:loud",
            "--log_output_level: \"default:loud\" is not <scope>:<level> with",
        ),
        ("--iptables-probe-port=0", "--iptables-probe-port: \"0\" is not a port from 1 to 65535"),
        ("--iptables-probe-port=65536", "--iptables-probe-port: \"65536\" is not a port"),
        ("--probe-timeout=soon", "--probe-timeout: \"soon\" is not a time above zero"),
        ("--probe-timeout=0s", "--probe-timeout: \"0s\" is not a time above zero"),
    ] {
        let text = error(&[arg]);
        assert!(text.starts_with(name), "{arg}: {text}");
    }
    assert!(error(&["--envoy-prot=1"]).contains("--envoy-port"), "a near name is suggested");
    assert!(error(&["-p"]).contains("--envoy-port"));
    assert!(error(&["-9"]).contains("-9"));
}

#[test]
fn values_are_taken_as_they_are() {
    for value in ["", "*", "-x", "--dry-run", "a b", "é\n"] {
        let options = ok(&["-i", value, "-d", "1"], &[]);
        assert_eq!(options.text(IptablesSetting::Ranges), value);
        assert_eq!(options.text(IptablesSetting::InboundPortsExcluded), "1");
        assert!(!options.on(IptablesSetting::DryRun));
    }
    assert_eq!(ok(&["-i", "a", "-i", "b"], &[]).text(IptablesSetting::Ranges), "b", "the last one counts");
    assert_eq!(ok(&[], &[("ISTIO_SERVICE_CIDR", "")]).text(IptablesSetting::Ranges), "");
}

#[test]
fn the_injector_s_arguments_are_taken() {
    let options = ok(
        &[
            "istio-iptables",
            "-p",
            "15001",
            "-z",
            "15006",
            "-u",
            "1337",
            "-m",
            "REDIRECT",
            "-i",
            "*",
            "-x",
            "",
            "-b",
            "*",
            "-d",
            "15090,15021,15020",
            "--log_output_level=default:info",
            "--log_as_json",
            "--run-validation",
            "--skip-rule-apply",
            "--native-nftables",
        ],
        &[],
    );
    assert!(options.on(IptablesSetting::RunValidation) && options.on(IptablesSetting::SkipRuleApply));
    assert_eq!(options.text(IptablesSetting::LogOutputLevel), "default:info");
}

#[test]
fn arguments_that_are_no_flags_are_refused() {
    let text = error(&["--dual-stack", "false"]);
    assert!(text.contains("\"false\"") && text.contains("--dual-stack=false"), "{text}");
    assert!(error(&["istio-iptables", "install"]).contains("\"install\""));
}

#[test]
fn help_names_everything() {
    let Err(Error::Usage(help)) = parsed(&["--help"], &[]) else { panic!("no help") };
    assert!(!help.use_stderr());
    let text = help.to_string();
    for spec in SPECS {
        assert!(text.contains(&title(spec)), "{}", title(spec));
        assert!(spec.env.iter().all(|name| text.contains(name)), "{:?}", spec.env);
    }
    let Err(Error::Usage(version)) = parsed(&["--version"], &[]) else { panic!("no version") };
    assert_eq!(version.to_string().trim(), concat!("istio-iptables ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn kinds_are_read() {
    let options = ok(&["--iptables-probe-port=4711", "--probe-timeout=1m30s"], &[]);
    assert_eq!(options.port(IptablesSetting::ProbePort).unwrap(), 4711);
    assert_eq!(options.time(IptablesSetting::ProbeTimeout).unwrap(), Duration::from_secs(90));
    assert!(
        options.port(IptablesSetting::ProbeTimeout).unwrap_err().to_string().starts_with("--probe-timeout")
    );
}
