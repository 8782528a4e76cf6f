use super::*;

fn normalized(bytes: &[u8]) -> String {
    normalize(bytes).unwrap()
}

#[test]
fn broken_utf8_becomes_one_mark_for_each_byte() {
    assert_eq!(normalized(b"\"a\xffb\""), "\"a\u{fffd}b\"");
    // a cut sequence of three bytes, and a surrogate as bytes
    assert_eq!(normalized(b"\"\xe2\x82\""), "\"\u{fffd}\u{fffd}\"");
    assert_eq!(normalized(b"\"\xed\xa0\xbd\""), "\"\u{fffd}\u{fffd}\u{fffd}\"");
    assert!(normalize(b"\xff{}").is_err(), "not outside of strings");
}

#[test]
fn surrogates_need_their_partner() {
    let decoded = |escapes: &str| {
        serde_json::from_str::<String>(&normalized(format!("\"{escapes}\"").as_bytes())).unwrap()
    };
    assert_eq!(decoded(r"\ud83d\ude00"), "😀");
    assert_eq!(decoded(r"\uD83D\uDE00x"), "😀x");
    assert_eq!(decoded(r"\ud83d"), "\u{fffd}");
    assert_eq!(decoded(r"\ude00\ud83d\ude00"), "\u{fffd}😀");
    assert_eq!(decoded(r"\ud83d\ud83d\ude00"), "\u{fffd}😀");
    assert_eq!(decoded(r"\ud83dA\\ud83d"), r"�A\ud83d");
    assert_eq!(decoded(r"\ud83dé"), "\u{fffd}é");
    for broken in [r#""\ud83""#, r#""\u+123""#, r#""\"#, r#"\ud83d"#] {
        assert!(normalize(broken.as_bytes()).is_err(), "{broken}");
    }
}

#[test]
fn syntax_is_that_of_json() {
    for good in ["{}", " [1 , -0.5e+3]\r\n", "\"\\u0000\u{7f}\"", "0", "null"] {
        assert!(normalize(good.as_bytes()).is_ok(), "{good}");
    }
    for bad in [
        "",
        "{}{}",
        "[1,]",
        "{a:1}",
        "'a'",
        "01",
        "1.",
        "+1",
        "0x1",
        "NaN",
        "True",
        "\"\t\"",
        "\u{feff}{}",
        "{}\0",
    ] {
        assert!(normalize(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

#[test]
fn depth_costs_no_stack() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    assert_eq!(depth(&normalized(deep.as_bytes())), 200_000);
    assert_eq!(depth(r#"{"[[[":[{"a":"]"}]}"#), 3);
}

#[test]
fn numbers_are_64_bit_floats() {
    assert_eq!(huge_number(r#"{"a":[1e308,"1e999",-1e309]}"#), Some("-1e309"));
    assert_eq!(huge_number("[123456789012345678901234567890, 1e-999]"), None);
}

#[test]
fn fields_fold_as_go_folds_them() {
    assert!(is_field("CNIVerſion", "cniVersion") && is_field("networ\u{212a}", "network"));
    assert!(!is_field("nàme", "name") && !is_field("names", "name"));
}

#[test]
fn a_map_keeps_the_last_of_equal_keys_and_sorts() {
    let keys = |order| {
        let node = GoNode::root(r#"{"b":1,"B":2,"a":3,"b":4}"#, order);
        let members = node.members("an object").unwrap();
        members.into_iter().map(|(key, value)| format!("{key}{}", value.raw())).collect::<Vec<_>>()
    };
    assert_eq!(keys(Order::Text), ["b1", "B2", "a3", "b4"]);
    assert_eq!(keys(Order::Map), ["B2", "a3", "b4"]);
}
