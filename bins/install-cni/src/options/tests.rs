use super::*;

fn options(args: &[&str], files: &[(&str, &str)], env: &[(&str, &str)]) -> Options {
    let find = |list: &[(&str, &str)], name: &str| {
        list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    let args = std::iter::once("install-cni").chain(args.iter().copied()).map(OsString::from);
    Flags::parse(args).unwrap().options(&|name| find(files, name), &|name| find(env, name))
}

/// N-1: default, variable, flag and empty variable of each option.
#[test]
fn every_option_is_read_from_where_it_may_come() {
    for spec in SPECS {
        let (name, variable) = (spec.name, spec.variable());
        let sample = match spec.kind {
            Kind::Text => "x",
            Kind::Switch => "t",
            Kind::Integer => "0x10",
        };
        let flag = format!("--{name}={sample}");
        assert_eq!(options(&[], &[], &[]).text(spec.setting), spec.default, "{name}: default");
        let by_variable = options(&[], &[], &[(&variable, sample)]);
        let by_file = options(&[], &[(&variable, sample)], &[(&variable, "y")]);
        let empty = options(&[], &[], &[(&variable, "")]);
        if spec.given == Given::Flag {
            assert_eq!(by_variable.text(spec.setting), spec.default, "{name}: has no variable");
        } else {
            assert_eq!(by_variable.text(spec.setting), sample, "{name}: variable");
            assert_eq!(by_file.text(spec.setting), sample, "{name}: a file before the variable");
            assert_eq!(empty.text(spec.setting), "", "{name}: empty counts as set");
            assert_eq!((empty.on(spec.setting), empty.number(spec.setting)), (false, 0), "{name}: empty");
        }
        let args = [OsString::from("install-cni"), flag.into()];
        if spec.given == Given::Variable {
            assert_eq!(
                Flags::parse(args).unwrap_err().kind(),
                clap::error::ErrorKind::UnknownArgument,
                "{name}"
            );
        } else {
            let flags = Flags::parse(args).unwrap();
            let read = flags.options(&|_| Some("file".into()), &|_| Some("variable".into()));
            assert_eq!(read.text(spec.setting), sample, "{name}: the flag before all");
        }
    }
}

#[test]
fn names_are_the_originals() {
    let all: Vec<String> = SPECS.iter().map(Spec::variable).collect();
    for name in [
        "CNI_CONF_NAME",
        "ISTIO_OWNED_CNI_CONFIG_FILENAME",
        "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP",
        "POD_SOURCE",
    ] {
        assert!(all.iter().any(|have| have == name), "{name}");
    }
    let mut unique = all.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), all.len());
}

#[test]
fn booleans_and_numbers_are_read_as_the_original_reads_them() {
    for (text, on) in [("1", true), ("TRUE", true), ("true", true), ("yes", false), ("", false), ("0", false)]
    {
        assert_eq!(options(&[], &[], &[("SKIP_TLS_VERIFY", text)]).on(Setting::SkipTlsVerify), on, "{text}");
    }
    for (text, number) in [
        ("0600", 0o600),
        ("384", 384),
        ("0x180", 384),
        ("-1", -1),
        ("rw", 0),
        ("08", 0),
        ("--1", 0),
        ("0", 0),
    ] {
        assert_eq!(
            options(&[], &[], &[("KUBECONFIG_MODE", text)]).number(Setting::KubeconfigMode),
            number,
            "{text}"
        );
    }
    assert!(options(&["--skip-tls-verify"], &[], &[]).on(Setting::SkipTlsVerify));
    assert!(!options(&["--chained-cni-plugin=false"], &[], &[]).on(Setting::ChainedCniPlugin));
    assert_eq!(options(&["--cni-conf-name", "-x"], &[], &[]).text(Setting::CniConfName), "-x");
    let list = options(&[], &[], &[("EXCLUDE_NAMESPACES", " a, ,b,")]).list(Setting::ExcludeNamespaces);
    assert_eq!(list, ["a", "b"]);
}

#[test]
fn a_wrong_flag_is_named() {
    for (flag, part) in [
        ("--skip-tls-verify=maybe", "--skip-tls-verify: \"maybe\" is not true or false"),
        ("--monitoring-port=http", "--monitoring-port: \"http\" is not a whole number"),
        ("--exclude-namespaces=x", "--exclude-namespaces"),
        ("--nonsense", "--nonsense"),
    ] {
        let error = Flags::parse(["install-cni", flag].map(OsString::from)).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}
