use std::ffi::OsString;

use capture::settings::{DnsCapture, OwnerGroups, Ranges};

use super::*;

const FILES: &[(&str, &str)] = &[
    (
        PASSWD,
        "root:x:0:0::/:/bin/sh\nistio-proxy:x:1338:1339::/:/bin/false\nenvoy:x:2000:2001::/:/bin/false\n",
    ),
    (GROUP, "root:x:0:\njava:x:202:\n"),
    (RESOLV_CONF, "search a b\nnameserver 10.0.0.10\nnameserver fd00::a\n"),
];

fn with_files(args: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]) -> Result<Config, Error> {
    let lookup = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    let args = std::iter::once("istio-iptables").chain(args.iter().copied()).map(OsString::from);
    let read = |path: &str| {
        let file = files.iter().find(|(p, _)| *p == path);
        file.map(|(_, text)| (*text).to_owned()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    build(&options::parse(args, &lookup)?, &read)
}

fn config(args: &[&str], env: &[(&str, &str)]) -> Config {
    with_files(args, env, FILES).unwrap_or_else(|error| panic!("{args:?} {env:?}: {error}"))
}

fn refused(args: &[&str], env: &[(&str, &str)]) -> String {
    fault::chain(&with_files(args, env, FILES).expect_err("must be refused"))
}

#[test]
fn nothing_given_applies_with_iptables_and_captures_nothing() {
    let config = config(&[], &[]);
    assert_eq!(config.job, RulesJob::Apply { force: false });
    assert_eq!((config.backend, config.variant), (Backend::Iptables, None));
    assert_eq!((config.namespace, config.dry_run, config.probe), (None, false, None));
    assert!(config.settings.inbound_ports.is_none());
    assert_eq!(config.settings.outbound_ranges, Ranges::Only(capture::settings::Prefixes::default()));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn the_proxy_s_user_and_group_have_defaults() {
    let ids = |args: &[&str], env: &[(&str, &str)], files| {
        let settings = with_files(args, env, files).unwrap().settings;
        (settings.proxy_uids, settings.proxy_gids)
    };
    assert_eq!(ids(&[], &[], FILES), (vec![1338], vec![1338]), "by the usual name, group as user");
    assert_eq!(ids(&[], &[("ENVOY_USER", "envoy")], FILES), (vec![2000], vec![2000]));
    assert_eq!(ids(&[], &[("ENVOY_USER", "nobody")], FILES), (vec![1337], vec![1337]), "unknown");
    assert_eq!(ids(&[], &[], &[]), (vec![1337], vec![1337]), "no file");
    assert_eq!(ids(&["-u", "5"], &[], FILES), (vec![5], vec![5]));
    assert_eq!(ids(&["-u", "5,6", "-g", "7"], &[], FILES), (vec![5, 6], vec![7]));
    assert_eq!(ids(&["-u", ""], &[("PROXY_GID", "9")], FILES), (vec![1338], vec![9]));
}

#[test]
fn what_happens_to_the_rules() {
    let job = |args: &[&str]| config(args, &[]).job;
    assert_eq!(job(&["--force-apply"]), RulesJob::Apply { force: true });
    assert_eq!(job(&["--reconcile"]), RulesJob::Apply { force: false });
    assert_eq!(job(&["--cleanup-only", "--force-apply"]), RulesJob::Cleanup);
    assert_eq!(job(&["--cleanup-only", "-m", "NONE"]), RulesJob::Cleanup);
    assert!(matches!(
        job(&["--skip-rule-apply", "--cleanup-only"]),
        RulesJob::Skip { why: "--skip-rule-apply" }
    ));
    assert!(matches!(job(&["-m", "NONE"]), RulesJob::Skip { .. }));
}

#[test]
fn modes() {
    let mode = |mode| {
        let config = config(&["-m", mode, "--run-validation"], &[]);
        (config.settings.mode, config.probe.is_some(), config.warnings.len())
    };
    assert_eq!(mode("REDIRECT"), (Mode::Redirect, true, 0));
    assert_eq!(mode(""), (Mode::Redirect, true, 0));
    assert_eq!(mode("TPROXY"), (Mode::Tproxy, true, 0));
    assert_eq!(mode("NONE"), (Mode::Redirect, false, 0), "there is nothing to validate");
    assert_eq!(mode("tproxy"), (Mode::Redirect, true, 1), "as the original, and said");
}

#[test]
fn backends_and_validation() {
    let given = config(
        &["--native-nftables", "--run-validation", "--probe-timeout=2s", "--iptables-probe-port=99", "-n"],
        &[("NETWORK_NAMESPACE", "/run/netns/x"), ("FORCE_IPTABLES_BINARY", "legacy")],
    );
    assert_eq!((given.backend, given.variant), (Backend::Nftables, Some(Variant::Legacy)));
    assert_eq!(given.probe, Some(Probe { port: 99, timeout: Duration::from_secs(2) }));
    assert_eq!(given.namespace, Some(PathBuf::from("/run/netns/x")));
    assert!(given.dry_run);
    assert_eq!(given.warnings.len(), 1, "a binary for another backend: {:?}", given.warnings);
    assert_eq!(config(&["--force-iptables-binary=nft"], &[]).variant, Some(Variant::Nft));
}

#[test]
fn dns_servers_come_from_resolv_conf_only_where_they_are_needed() {
    let dns = |args: &[&str], env: &[(&str, &str)]| config(args, env).settings.dns;
    let servers =
        DnsCapture::Servers { v4: vec!["10.0.0.10".parse().unwrap()], v6: vec!["fd00::a".parse().unwrap()] };
    assert_eq!(dns(&["--redirect-dns"], &[]), servers);
    assert_eq!(dns(&["--capture-all-dns"], &[("ISTIO_META_DNS_CAPTURE", "true")]), DnsCapture::All);
    assert_eq!(dns(&["--capture-all-dns"], &[]), DnsCapture::Off);

    assert!(with_files(&["--redirect-dns", "--capture-all-dns"], &[], &[]).is_ok());
    let error = with_files(&["--redirect-dns"], &[], &[]).expect_err("there is no file");
    assert!(error.to_string().contains("/etc/resolv.conf"), "{error}");
    let empty = with_files(&["--redirect-dns"], &[], &[(RESOLV_CONF, "# none\n")]).unwrap();
    assert_eq!((empty.settings.dns, empty.warnings.len()), (DnsCapture::Off, 1));
}

#[test]
fn groups_are_looked_up_by_name() {
    let groups = |include: &str, exclude: &str| {
        let env =
            [("ISTIO_OUTBOUND_OWNER_GROUPS", include), ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", exclude)];
        config(&[], &env).settings.owner_groups
    };
    assert_eq!(groups("java,303", ""), OwnerGroups::Only(vec![202, 303]));
    assert_eq!(groups("*", "java"), OwnerGroups::AllBut(vec![202]));
}

#[test]
fn switches_reach_the_settings() {
    let settings = config(&["--drop-invalid"], &[("ISTIO_DUAL_STACK", "true")]).settings;
    assert!(settings.drop_invalid && settings.dual_stack);
    let settings = config(&[], &[("INVALID_DROP", "1"), ("DUAL_STACK", "f")]).settings;
    assert!(settings.drop_invalid && !settings.dual_stack);
}

#[test]
fn an_invalid_value_is_refused_by_the_name_of_its_flag() {
    for (flag, values) in [
        ("envoy-port", &["0", "65536", "", "http"][..]),
        ("inbound-capture-port", &["-1", "1,2"]),
        ("inbound-tunnel-port", &["x"]),
        ("proxy-uid", &["root", "4294967296"]),
        ("proxy-gid", &["1.5"]),
        ("istio-inbound-ports", &["80;90", "*,80", "99999"]),
        ("istio-local-exclude-ports", &["http", "1-5"]),
        ("istio-exclude-interfaces", &["eth0;reboot", "0th", "a234567890123456"]),
        ("istio-service-cidr", &["10.0.0.0", "10.0.0.0/33", "*,10.0.0.0/8", "fe80::1%eth0/64"]),
        ("istio-service-exclude-cidr", &["*", "10.0.0.0/08"]),
        ("istio-outbound-ports", &["80 90"]),
        ("istio-local-outbound-ports-exclude", &["\n-j"]),
        ("kube-virt-interfaces", &["a b", "net1\n-j"]),
        ("istio-inbound-tproxy-mark", &["", "0x539"]),
        ("istio-inbound-tproxy-route-table", &["main"]),
        ("force-iptables-binary", &["nftables", "Legacy"]),
    ] {
        for value in values {
            let text = refused(&[&format!("--{flag}={value}")], &[]);
            assert!(text.starts_with(&format!("--{flag}: ")), "--{flag}={value}: {text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }
}

#[test]
fn an_invalid_variable_without_a_flag_is_refused_too() {
    let many = (0..65).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    assert!(refused(&[], &[("ISTIO_OUTBOUND_OWNER_GROUPS", &many)]).contains("at most 64"));
    let text = refused(&[], &[("ISTIO_OUTBOUND_OWNER_GROUPS", "nosuchgroup")]);
    assert!(text.contains("nosuchgroup") && text.contains("owner-groups"), "{text}");
    for loopback in ["127.0.0.1", "127.0.0.0/7", "10.0.0.0/8", "::1/128", ""] {
        let text = refused(&[], &[("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", loopback)]);
        assert!(text.contains("loopback"), "{loopback}: {text}");
    }
    let list = "1,".repeat(40_000);
    assert!(refused(&["-b", &list], &[]).contains("80000 bytes"));
}
