use super::*;

#[test]
fn event_names_are_names() {
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    assert_eq!(event_name("web-0", now), "web-0.17979cfe362a0000");
    let long = event_name(&"a".repeat(253), now);
    assert_eq!(long.len(), 253);
    assert!(long.ends_with("a.17979cfe362a0000"), "{long}");
    assert!(event_name(&format!("{}-{}", "a".repeat(235), "b".repeat(17)), now).contains("a.17979"));
}

#[test]
fn times_have_whole_seconds() {
    let now = Timestamp::from_millisecond(1_700_000_000_750).unwrap();
    assert_eq!(whole_seconds(now), "2023-11-14T22:13:20Z");
}

#[test]
fn a_name_stays_one_segment_of_a_path() {
    assert_eq!(segment("web-0.x_y"), "web-0.x_y");
    assert_eq!(segment("../nodes?x=1"), ".._nodes_x_1");
}
