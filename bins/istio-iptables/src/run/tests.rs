use super::*;

#[test]
fn the_level_for_everything_is_found() {
    for (text, expected) in [
        ("debug", Level::Debug),
        ("default:warn", Level::Warn),
        ("all:error", Level::Error),
        ("default:info,ads:debug", Level::Info),
        ("ads:debug", Level::Info),
        ("none", Level::None),
        ("", Level::Info),
    ] {
        assert_eq!(level(text), expected, "{text}");
    }
}
