use super::*;

#[test]
fn the_object_has_ordered_keys_four_spaces_and_no_newline() {
    let error = Error::new(code::INVALID_NETWORK_CONFIG, "bad \"name\"").with_details("a\nb");
    let text = String::from_utf8(error.render(SpecVersion::V1_0_0)).unwrap();
    assert_eq!(
        text,
        "{\n    \"cniVersion\": \"1.0.0\",\n    \"code\": 7,\n    \"msg\": \"bad \\\"name\\\"\",\n    \
         \"details\": \"a\\nb\"\n}"
    );
}

#[test]
fn empty_details_are_left_out() {
    let text = String::from_utf8(Error::internal("x").render(SpecVersion::LATEST)).unwrap();
    assert_eq!(text, "{\n    \"cniVersion\": \"1.1.0\",\n    \"code\": 999,\n    \"msg\": \"x\"\n}");
    assert_eq!(Error::internal("x").to_string(), "x");
    assert_eq!(Error::internal("x").with_details("y").to_string(), "x: y");
}

#[test]
fn long_quotes_are_cut_between_characters() {
    assert_eq!(shorten("abc"), "abc");
    let cut = shorten(&"ä".repeat(1000));
    assert!(cut.starts_with(&"ä".repeat(256)) && cut.ends_with("... (2000 bytes)"), "{cut}");
}
