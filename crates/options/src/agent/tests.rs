use super::*;
use crate::TextKind;

fn options(args: &[&str], files: &[(&str, &str)], env: &[(&str, &str)]) -> Options {
    read(args, files, env).unwrap()
}

fn read(args: &[&str], files: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Options, BadOption> {
    let find = |list: &[(&str, &str)], name: &str| {
        list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    let args = std::iter::once("install-cni").chain(args.iter().copied()).map(OsString::from);
    Flags::parse(args).unwrap().options(&|name| find(files, name), &|name| find(env, name))
}

/// Default, variable, flag and empty variable of each option.
#[test]
fn every_option_is_read_from_where_it_may_come() {
    for spec in SPECS {
        let (name, variable) = (spec.name, spec.variable());
        let sample = match spec.kind {
            TextKind::Text => "x",
            TextKind::Switch => "t",
            TextKind::Integer | TextKind::Form(_) => "0x10",
        };
        let flag = format!("--{name}={sample}");
        assert_eq!(options(&[], &[], &[]).text(spec.setting), spec.default, "{name}: default");
        let by_variable = options(&[], &[], &[(&variable, sample)]);
        let by_file = options(&[], &[(&variable, sample)], &[(&variable, "?")]);
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
            let other = |asked: &str| (asked == variable).then(|| "?".to_owned());
            let read = flags.options(&other, &other).unwrap();
            assert_eq!(read.text(spec.setting), sample, "{name}: the flag before all");
        }
    }
}

#[test]
fn names_are_the_originals() {
    let all: Vec<String> = SPECS.iter().map(AgentSpec::variable).collect();
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
    for (text, on) in [
        ("1", true),
        ("T", true),
        ("TRUE", true),
        ("true", true),
        ("True\n", true),
        ("", false),
        ("0", false),
        ("False\r\n", false),
    ] {
        let variable = [("SKIP_TLS_VERIFY", text)];
        assert_eq!(options(&[], &[], &variable).on(Setting::SkipTlsVerify), on, "{text:?}");
        assert_eq!(options(&[], &variable, &[]).on(Setting::SkipTlsVerify), on, "{text:?} in a file");
    }
    for (text, number) in
        [("0600", 0o600), ("384\n", 384), ("0x180", 384), ("0o600", 384), ("-1", -1), ("0", 0), ("", 0)]
    {
        let variable = [("KUBECONFIG_MODE", text)];
        assert_eq!(options(&[], &[], &variable).number(Setting::KubeconfigMode), number, "{text:?}");
        assert_eq!(
            options(&[], &variable, &[]).number(Setting::KubeconfigMode),
            number,
            "{text:?} in a file"
        );
    }
    assert!(options(&["--skip-tls-verify"], &[], &[]).on(Setting::SkipTlsVerify));
    assert!(!options(&["--chained-cni-plugin=false"], &[], &[]).on(Setting::ChainedCniPlugin));
    assert_eq!(options(&["--cni-conf-name", "-x"], &[], &[]).text(Setting::CniConfName), "-x");
    let list = options(&[], &[], &[("EXCLUDE_NAMESPACES", " a, ,b,")]).list(Setting::ExcludeNamespaces);
    assert_eq!(list, ["a", "b"]);
}

/// A word that counted as off, or as 0, would be the opposite of what its author meant.
#[test]
fn text_that_is_not_of_its_kind_is_named_wherever_it_comes_from() {
    for spec in SPECS.iter().filter(|spec| spec.given != Given::Flag) {
        let (words, problem): (&[&str], _) = match spec.kind {
            TextKind::Text => continue,
            TextKind::Switch => (
                &["yes", "no", "on", "enabled", "tRUE", "true ", " true", "\ttrue", "2", "\"true\""],
                "true or false",
            ),
            TextKind::Integer | TextKind::Form(_) => {
                (&["many", "08", "--1", "1 ", "0x", "1.5", "1_000"], "a whole number")
            }
        };
        for word in words {
            let variable = spec.variable();
            let expected = format!("option {}: {word:?} is not {problem}", spec.name);
            for (files, env) in [(&[][..], &[(&*variable, *word)][..]), (&[(&*variable, *word)], &[])] {
                assert_eq!(read(&[], files, env).unwrap_err().to_string(), expected);
            }
            // What is not used need not mean anything.
            let (file, env) = ([(&*variable, "1")], [(&*variable, *word)]);
            read(&[], &file, &env).unwrap();
        }
    }
}

#[test]
fn newlines_at_the_end_are_no_part_of_a_value_and_everything_else_is() {
    for (given, read) in [("a\n", "a"), ("a\r\n\n", "a"), ("\n", ""), (" a ", " a "), ("a\nb\n", "a\nb")] {
        let given = [("CNI_CONF_NAME", given)];
        assert_eq!(options(&[], &given, &[]).text(Setting::CniConfName), read);
        assert_eq!(options(&[], &[], &given).text(Setting::CniConfName), read);
    }
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
