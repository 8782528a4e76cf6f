use super::*;

#[test]
fn versions_order_numerically_and_missing_parts_are_zero() {
    assert!(SpecVersion::parse("0.10.0").unwrap() > SpecVersion::V0_4_0);
    assert_eq!(SpecVersion::parse("1.1").unwrap(), SpecVersion::V1_1_0);
    assert_eq!(SpecVersion::parse("1").unwrap(), SpecVersion::V1_0_0);
    let mut sorted = SpecVersion::SUPPORTED;
    sorted.sort();
    assert_eq!(sorted, SpecVersion::SUPPORTED);
}

#[test]
fn odd_texts_do_not_parse_and_say_why() {
    for text in ["1.0.0.0", "1..0", "", "a", "1.0.x", "-1.0.0", "+1.0.0", "1.0.4294967296", " 1.0.0"] {
        let message = SpecVersion::parse(text).unwrap_err().to_string();
        assert!(message.contains(&format!("\"{text}\"")), "{message}");
        assert!(message.contains("major.minor.patch"), "{message}");
    }
}

#[test]
fn only_the_exact_text_is_supported() {
    for version in SpecVersion::SUPPORTED {
        assert_eq!(SpecVersion::supported(&version.to_string()), Some(version));
    }
    for text in ["1.0", "01.0.0", "1.2.0", "0.0.0", "", "1.0.0 "] {
        assert_eq!(SpecVersion::supported(text), None, "{text}");
    }
}

#[test]
fn families_split_where_the_result_changed_its_shape() {
    let families: Vec<_> = SpecVersion::SUPPORTED.iter().map(|version| version.family()).collect();
    use ResultShape::{Current, Lists, Single};
    assert_eq!(families, [Single, Single, Lists, Lists, Lists, Current, Current]);
}
