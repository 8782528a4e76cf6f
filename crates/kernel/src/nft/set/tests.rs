use super::comment;

#[test]
fn the_comment_among_other_things_and_junk() {
    let cases: [(&[u8], Option<&str>); 9] = [
        (b"", None),
        (b"\x00\x04uid\0", Some("uid")),
        (b"\x00\x03uid", Some("uid")),
        (b"\x00\x00", Some("")),
        // What nft notes of intervals comes before.
        (b"\x01\x04\x01\x00\x00\x00\x00\x04uid\0", Some("uid")),
        // Longer than what is there.
        (b"\x00\xffuid\0", None),
        (b"\x01\xff\x00\x04uid\0", None),
        (b"\x00", None),
        (b"\x00\x03\xff\xfe\x00", Some("\u{fffd}\u{fffd}")),
    ];
    for (data, wanted) in cases {
        assert_eq!(comment(data).as_deref(), wanted, "{data:?}");
    }
}
