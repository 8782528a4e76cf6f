use super::*;

/// What a release makes of a file, as text.
fn told(form: Form, text: &str, release: LibcniRelease, folder: &Folder) -> String {
    match load(form, text.as_bytes(), folder).of(release) {
        Ok(LoadedNetwork { name, version, plugins }) => format!("{name} {version} {}", plugins.join("+")),
        Err(cause) => format!("no: {cause}"),
    }
}

fn both(form: Form, text: &str) -> [String; 2] {
    [LibcniRelease::V1_1, LibcniRelease::V1_3].map(|release| told(form, text, release, &Folder::default()))
}

#[test]
fn lists() {
    for (text, wanted) in [
        (r#"{"name":"n","plugins":[{"type":"x"}],"unknown":[]}"#, "n  x"),
        (r#"{"name":"","cniVersion":"v1","plugins":[{"Type":"x"},{"type":"y"}]}"#, " v1 x+y"),
        (r#"{"name":"n","disableCheck":true,"plugins":[{"type":"x","name":null}]}"#, "n  x"),
        (r#"{"plugins":[{"type":"x"}]}"#, "no: key name is missing"),
        (r#"{"NAME":"n","plugins":[{"type":"x"}]}"#, "no: key name is missing"),
        (r#"{"name":7,"plugins":[{"type":"x"}]}"#, "no: key name is not a text"),
        (r#"{"name":"n","name":null,"plugins":[{"type":"x"}]}"#, "no: key name is not a text"),
        (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"x"}]}"#, "no: key cniVersion is not a text"),
        (r#"{"name":"n","cniVersion":null,"plugins":[{"type":"x"}]}"#, "no: key cniVersion is not a text"),
        (
            r#"{"name":"n","disableCheck":"yes","plugins":[{"type":"x"}]}"#,
            "no: key disableCheck is not a boolean",
        ),
        (r#"{"name":"n","plugins":{}}"#, "no: key plugins is not a list"),
        (r#"{"name":"n","plugins":null}"#, "no: key plugins is not a list"),
        (r#"{"name":"n","plugins":[]}"#, "no: the list has no plugins"),
        (r#"{"name":"n","plugins":[{"type":"x"}],"a":[2e999]}"#, "no: number 2e999 is too large"),
        (r#"[]"#, "no: an array and not a JSON object"),
        (
            r#"{"name":"n","plugins":[{"type":"x","dns":{"search":["a",1]}}]}"#,
            "no: plugins[0]: key dns.search[1] is not a text",
        ),
        (
            r#"{"name":"n","plugins":[{"type":"x"},{"type":"y","capabilities":{"a":"true"}}]}"#,
            "no: plugins[1]: key capabilities.a is not a boolean",
        ),
    ] {
        assert_eq!(both(Form::List, text), [wanted, wanted], "{text}");
    }
    for plugin in ["1", "null", "{}", r#"{"type":""}"#, r#"[{"type":"x"}]"#] {
        let text = format!(r#"{{"name":"n","plugins":[{{"type":"x"}},{plugin}]}}"#);
        let wanted = "no: plugins[1] is not an object with a type, which is the name of a program";
        assert_eq!(both(Form::List, &text), [wanted, wanted]);
    }
}

#[test]
fn what_only_one_release_knows() {
    let list =
        |member: &str| both(Form::List, &format!(r#"{{"name":"n","plugins":[{{"type":"x"}}],{member}}}"#));
    let (loads, flag) = ("n  x", |key: &str| format!("no: key {key} is not a boolean"));
    assert_eq!(list(r#""disableCheck":"True""#), [flag("disableCheck"), loads.to_owned()]);
    assert_eq!(list(r#""disableGC":null"#), [loads.to_owned(), flag("disableGC")]);
    assert_eq!(list(r#""loadOnlyInlinedPlugins":1"#), [loads.to_owned(), flag("loadOnlyInlinedPlugins")]);
    assert_eq!(list(r#""cniVersions":"1.0.0""#), [loads, "no: key cniVersions is not a list of versions"]);
    assert_eq!(list(r#""cniVersions":["0.4.0","1.0"]"#), [loads, "n 1.0 x"]);
    let version = "no: cniVersion \"new\": part \"new\" is not a number; use major.minor.patch such as 1.0.0";
    assert_eq!(list(r#""cniVersions":["new"]"#), [loads, version]);
    let attachments = r#"{"type":"x","cni.dev/valid-attachments":[{"ifName":1}]}"#;
    let [old, new] = both(Form::Single, attachments);
    assert_eq!(old, "  x");
    assert_eq!(new, "no: key cni.dev/valid-attachments[0].ifName is not a text");
}

#[test]
fn the_newest_version_that_is_not_too_new_counts() {
    let version = |own: &str, versions: &str| {
        let text = format!(
            r#"{{"name":"n","cniVersion":"{own}","cniVersions":{versions},"plugins":[{{"type":"x"}}]}}"#
        );
        told(Form::List, &text, LibcniRelease::V1_3, &Folder::default())
    };
    assert_eq!(version("1.0.0", r#"["0.3.1","1.1.0","2.0.0"]"#), "n 1.1.0 x");
    assert_eq!(version("1.0.0", r#"["01.0.0","0.4.0"]"#), "n 01.0.0 x");
    assert_eq!(version("", r#"["9.0.0"]"#), "n  x");
    assert_eq!(version("", r#"["","-1.0.0"]"#), "n  x");
    assert!(
        version("1.0.0.0", "[]").ends_with("has more than three parts; use major.minor.patch such as 1.0.0")
    );
}

#[test]
fn single_networks() {
    for (text, wanted) in [
        (r#"{"type":"x"}"#, "  x"),
        (r#"{"NAME":"a","type":"x","Name":"b","cniVersion":null}"#, "b  x"),
        (r#"{"name":"a","type":"x","plugins":7,"disableGC":[]}"#, "a  x"),
        // the plugin that a list is made of is a map, whose keys are sorted
        (r#"{"type":"x","TYPE":"y"}"#, "  x"),
        (r#"{"type":"x","prevResult":{"ips":7}}"#, "  x"),
        (r#"{"type":"x","ipam":{"Type":null,"type":"y"},"dns":null}"#, "  x"),
        (r#"null"#, "no: key type is not the name of a program"),
        (r#"{"type":null}"#, "no: key type is not the name of a program"),
        (r#""x""#, "no: a text and not a JSON object"),
        (r#"{"type":"x","ipam":"y"}"#, "no: key ipam is not an object"),
        // the first is decoded too
        (r#"{"type":"x","ipam":"y","ipam":{}}"#, "no: key ipam is not an object"),
        (r#"{"type":"x","capabilities":{"a":1,"a":true}}"#, "no: key capabilities.a is not a boolean"),
        (r#"{"type":"x","DNS":{"Nameservers":"1.1.1.1"}}"#, "no: key DNS.Nameservers is not a list of texts"),
        (r#"{"type":"x","prevResult":[]}"#, "no: key prevResult is not an object"),
        (r#"{"type":"x","mtu":1e999}"#, "no: number 1e999 is too large"),
    ] {
        assert_eq!(both(Form::Single, text), [wanted, wanted], "{text}");
    }
}

#[test]
fn the_list_that_a_single_network_becomes_is_two_levels_deeper() {
    let single = |depth: usize| {
        let deep = format!("{}{}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        both(Form::Single, &format!(r#"{{"type":"x","deep":{deep}}}"#))
    };
    assert_eq!(single(9998), ["  x", "  x"]);
    let too_deep = "no: nested more than 10000 deep";
    assert_eq!(single(9999), [too_deep, too_deep]);
    assert_eq!(single(10_001), [too_deep, too_deep]);
}

#[test]
fn the_folder_belongs_to_lists_of_the_newer_release() {
    let folder = |plugins| Folder { plugins, unreadable: None };
    let told = |text: &str, folder: &Folder| {
        [LibcniRelease::V1_1, LibcniRelease::V1_3].map(|release| told(Form::List, text, release, folder))
    };
    let bridge = folder(vec![Ok("bridge".to_owned())]);
    let broken = folder(vec![Ok("bridge".to_owned()), Err("net/2.conf: not JSON".to_owned())]);
    let list = r#"{"name":"n","plugins":[{"type":"x"}]}"#;
    assert_eq!(told(list, &bridge), ["n  x", "n  x+bridge"]);
    assert_eq!(told(list, &broken), ["n  x", "no: the network's folder: net/2.conf: not JSON"]);
    assert_eq!(told(r#"{"name":"n"}"#, &bridge), ["no: key plugins is missing", "n  bridge"]);
    let inlined = r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}"#;
    assert_eq!(told(inlined, &broken), ["n  x", "n  x"]);
    let unreadable = Folder { unreadable: Some("no directory".to_owned()), ..Folder::default() };
    assert_eq!(told(list, &unreadable), ["n  x", "no: the network's folder: no directory"]);
}

#[test]
fn a_file_of_the_folder_is_a_plugin_alone() {
    assert_eq!(load_folder_file(br#"{"TYPE":"x","mtu":1e999}"#).unwrap(), "x");
    assert_eq!(
        load_folder_file(br#"{"type":"x","prevResult":{"a":1e999}}"#).unwrap_err().to_string(),
        "key prevResult is not an object whose numbers fit a 64-bit float"
    );
    assert_eq!(
        load_folder_file(b"{").unwrap_err().to_string(),
        "not JSON: EOF while parsing an object at line 1 column 1"
    );
}

#[test]
fn a_difference_names_both_releases() {
    let told = |text: &str| load(Form::List, text.as_bytes(), &Folder::default()).difference();
    assert_eq!(
        told(r#"{"name":"n","disableGC":7,"plugins":[{"type":"x"}]}"#),
        "libcni 1.1 (containerd 1.6) loads it, libcni 1.3 (containerd 2) does not: key disableGC is not a boolean; correct the file"
    );
    assert_eq!(
        told(r#"{"name":"n","disableCheck":"false","plugins":[{"type":"x"}]}"#),
        "libcni 1.3 (containerd 2) loads it, libcni 1.1 (containerd 1.6) does not: key disableCheck is not a boolean; correct the file"
    );
}
