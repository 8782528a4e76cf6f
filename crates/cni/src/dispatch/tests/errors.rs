//! Every error that a call can end in, with its code and text.

use super::*;

const LIST: &str = r#"["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#;

/// What a row puts in.
struct Input<'a> {
    verb: &'a str,
    vars: Vars<'a>,
    stdin: &'a str,
    netns: Result<NetnsRelation, String>,
}

/// What has to come out: code, message (a prefix where it ends in the cause), details, cniVersion.
struct Expected<'a> {
    code: u32,
    msg: &'a str,
    details: Option<&'a str>,
    version: &'a str,
}

fn check_row(input: &Input<'_>, expected: &Expected<'_>) {
    let mut vars = env_for(input.verb);
    vars.extend_from_slice(input.vars);
    let mut plugin = Scripted { netns: input.netns.clone(), ..Scripted::default() };
    let seen = run(&vars, input.stdin, &mut plugin);
    let row = format!("{} {:?} {}: {}", input.verb, input.vars, input.stdin, seen.stdout);
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&seen.stdout).expect(&row);
    assert_eq!(json["code"], expected.code, "{row}");
    let msg = json["msg"].as_str().expect(&row);
    assert!(msg == expected.msg || (expected.msg.ends_with(": ") && msg.starts_with(expected.msg)), "{row}");
    assert_eq!(json.get("details").map(|text| text.as_str().expect(&row)), expected.details, "{row}");
    assert_eq!(json["cniVersion"], expected.version, "{row}");
    assert_eq!(json.len(), 3 + usize::from(expected.details.is_some()), "{row}");
    assert_eq!(seen.outcome.exit, 1, "{row}");
    assert_eq!(seen.outcome.error.expect(&row).msg, msg);
    assert_eq!(plugin.calls, [""; 0], "the plugin worked although its input was refused: {row}");
}

fn check_env(verb: &str, vars: Vars<'_>, msg: &str, details: Option<&str>) {
    // stdin is broken, too: the environment is looked at first.
    let input = Input { verb, vars, stdin: "{", netns: Ok(NetnsRelation::Different) };
    check_row(&input, &Expected { code: 4, msg, details, version: "1.1.0" });
}

fn check_stdin(verb: &str, stdin: &str, code: u32, msg: &str, details: Option<&str>, version: &str) {
    let input = Input { verb, vars: &[], stdin, netns: Ok(NetnsRelation::Different) };
    check_row(&input, &Expected { code, msg, details, version });
}

#[test]
fn environment() {
    check_env(
        "ADD",
        &[("CNI_CONTAINERID", ""), ("CNI_PATH", "")],
        "required env variables [CNI_CONTAINERID,CNI_PATH] missing",
        None,
    );
    check_env("CHECK", &[("CNI_NETNS", "")], "required env variables [CNI_NETNS] missing", None);
    for verb in ["DEL", "STATUS", "GC"] {
        check_env(verb, &[("CNI_PATH", "")], "required env variables [CNI_PATH] missing", None);
    }
    check_env("ADD", &[("CNI_CONTAINERID", "../x")], "invalid characters in containerID", Some("../x"));
    check_env(
        "DEL",
        &[("CNI_IFNAME", "sixteen-letters-")],
        "interface name is too long",
        Some("interface name should be less than 16 characters"),
    );
    check_env("ADD", &[("CNI_IFNAME", "..")], "interface name is . or ..", None);
    let chars = "interface name contains / or : or whitespace characters";
    check_env("CHECK", &[("CNI_IFNAME", "a/b")], chars, None);
}

#[test]
fn stdin() {
    let unreadable = "error unmarshall network config: ";
    for text in ["", "{", "not json", "[]", "7", r#"{"name":"n"} x"#, r#"{"name":7}"#] {
        check_stdin("ADD", text, 6, unreadable, None, "1.1.0");
        check_stdin("JUMP", text, 6, unreadable, None, "1.1.0");
    }
    for text in ["{}", "null", r#"{"name":""}"#, r#"{"name":null}"#] {
        check_stdin("STATUS", text, 7, "missing network name", None, "1.1.0");
    }
    let illegal = "invalid characters found in network name";
    check_stdin("DEL", r#"{"name":"a/b"}"#, 7, illegal, Some("a/b"), "1.1.0");
    check_stdin("JUMP", &conf("1.0.0"), 4, "unknown CNI_COMMAND: JUMP", None, "1.1.0");
}

#[test]
fn stdin_that_fails_or_never_ends() {
    let env = env_for("ADD");
    let seen = run_with(&env, &mut Broken, &mut Scripted::default());
    let error = seen.outcome.error.unwrap();
    assert_eq!(error, Error::new(5, "error reading from stdin: device gone"));
    let seen = run_with(&env, &mut std::io::repeat(b' '), &mut Scripted::default());
    let error = seen.outcome.error.unwrap();
    assert_eq!(error.code, code::IO_FAILURE);
    assert!(error.msg.contains("network configuration is larger than 16777216 bytes"), "{error}");
}

#[test]
fn versions() {
    for verb in ["ADD", "DEL"] {
        for version in ["1.2.0", "abc", "1.0", "0.0.1"] {
            let details = format!("config is \"{version}\", plugin supports {LIST}");
            let text = "incompatible CNI versions";
            check_stdin(verb, &conf(version), 1, text, Some(&details), "1.1.0");
        }
    }
    for (verb, version) in [("CHECK", "0.3.0"), ("GC", "1.0.0"), ("STATUS", "1.0.0"), ("STATUS", "0.4.0")] {
        let msg = format!("config version does not allow {verb}");
        check_stdin(verb, &conf(version), 1, &msg, None, version);
    }
    for verb in ["CHECK", "GC", "STATUS"] {
        check_stdin(verb, &conf("1.2.0"), 1, &format!("plugin version does not allow {verb}"), None, "1.1.0");
        let details = format!("config is \"1.1\", plugin supports {LIST}");
        check_stdin(verb, &conf("1.1"), 1, "incompatible CNI versions", Some(&details), "1.1.0");
        check_stdin(verb, &conf("1.1.0.0"), 6, TOO_MANY, None, "1.1.0");
        check_stdin(verb, &conf("1.x.0"), 6, NOT_A_NUMBER, None, "1.1.0");
        // absent means 0.1.0
        let msg = format!("config version does not allow {verb}");
        check_stdin(verb, r#"{"name":"n"}"#, 1, &msg, None, "0.1.0");
    }
    let typed = "decoding version from network config: ";
    check_stdin("ADD", r#"{"name":"n","cniVersion":1}"#, 6, typed, None, "1.1.0");
}

const TOO_MANY: &str =
    r#"cniVersion "1.1.0.0" has more than three parts; use major.minor.patch such as 1.0.0"#;
const NOT_A_NUMBER: &str =
    r#"cniVersion "1.x.0": part "x" is not a number; use major.minor.patch such as 1.0.0"#;

#[test]
fn own_namespace() {
    let same = "plugin's netns and netns from CNI_NETNS should not be the same";
    let failed = "get plugin's netns failed";
    for verb in ["ADD", "DEL", "CHECK"] {
        let stdin = conf("1.0.0");
        let input = |netns| Input { verb, vars: &[], stdin: &stdin, netns };
        let expected = Expected { code: 8, msg: same, details: None, version: "1.0.0" };
        check_row(&input(Ok(NetnsRelation::Same)), &expected);
        let expected = Expected { msg: failed, details: Some("no /proc"), ..expected };
        check_row(&input(Err("no /proc".into())), &expected);
    }
}

#[test]
fn failures_of_the_work() {
    let add = |members: &str, vars: Vars<'_>| {
        let mut all = env_for("ADD");
        all.extend_from_slice(vars);
        let stdin = format!(r#"{{"name":"n",{members}}}"#);
        let mut plugin = Scripted::default();
        let seen = run(&all, &stdin, &mut plugin);
        assert_eq!((seen.outcome.exit, plugin.calls.len()), (1, 0), "{stdin}");
        let error = seen.outcome.error.unwrap();
        assert_eq!(error.code, 999);
        error.to_string()
    };
    let version = r#""cniVersion":"1.0.0""#;
    assert_eq!(
        add(&format!("{version},\"exclude_namespaces\":\"a\""), &[]),
        "failed to parse network configuration: exclude_namespaces: expected an array, found a text"
    );
    assert_eq!(
        add(&format!("{version},\"prevResult\":{{\"cniVersion\":\"0.4.0\"}}"), &[]),
        "could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is \"0.4.0\""
    );
    assert_eq!(add(version, &[("CNI_ARGS", "A=1")]), "failed to load args: ARGS: unknown args [\"A=1\"]");
    // Without prevResult the oldest formats cannot print anything; known before the work, not after it.
    assert_eq!(add(r#""cniVersion":"0.2.0""#, &[]), "cannot convert: no valid IP addresses");
    assert_eq!(add(r#""type":"x""#, &[]), "cannot convert: no valid IP addresses");
}
