use std::ffi::OsString;

use super::*;
use crate::TextKind;
use crate::agent::Flags;

fn options(variable: &str, value: &str) -> Options {
    let find = |name: &str| (name == variable).then(|| value.to_owned());
    Flags::parse([OsString::from("install-cni")]).unwrap().options(&find, &|_| None).unwrap()
}

/// Every option is followed, named, or of no effect by its own help.
#[test]
fn a_change_of_any_option_counts_or_is_told() {
    for spec in SPECS {
        let (before, after) = match spec.kind {
            TextKind::Text => ("a", "b"),
            TextKind::Switch => ("false", "true"),
            TextKind::Integer | TextKind::Form(_) => ("1", "2"),
        };
        let (start, new) = (options(&spec.variable(), before), options(&spec.variable(), after));
        if start == new {
            // It is given on the command line, which does not change.
            continue;
        }
        for ambient in [false, true] {
            let changed = start.changed_to(&new, ambient);
            let (counts, waits) = (changed.options == new, changed.waiting == [spec.name]);
            let is_without_effect = spec.help.to_ascii_lowercase().contains("without effect");
            assert_eq!(!counts && !waits, is_without_effect, "{}: {changed:?}", spec.name);
            assert!(counts || changed.options == start, "{}", spec.name);
        }
    }
}

#[test]
fn what_can_be_followed_is_followed_beside_what_cannot() {
    let read = |values: &[(&str, &str)]| {
        let find =
            |name: &str| values.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Flags::parse([OsString::from("install-cni")]).unwrap().options(&find, &|_| None).unwrap()
    };
    let start = read(&[("EXCLUDE_NAMESPACES", "a"), ("NATIVE_NFTABLES", "false")]);
    let new = read(&[
        ("EXCLUDE_NAMESPACES", "a,b"),
        ("CAPTURE", "disabled"),
        ("NATIVE_NFTABLES", "true"),
        ("HEALTH_PORT", "0"),
        ("AMBIENT_ENABLED", "true"),
    ]);
    let changed = start.changed_to(&new, true);
    assert_eq!(changed.waiting, ["ambient-enabled", "native-nftables", "health-port"]);
    assert_eq!(changed.options.text(Setting::ExcludeNamespaces), "a,b");
    assert_eq!(changed.options.text(Setting::Capture), "disabled");
    let backend = |options: &Options| options.text(Setting::NativeNftables).to_owned();
    assert_eq!(backend(&changed.options), "false");
    assert!(!changed.options.on(Setting::AmbientEnabled));
    // The plugin's rules are its own in sidecar mode.
    let changed = start.changed_to(&new, false);
    assert_eq!(backend(&changed.options), "true");
    assert!(!changed.waiting.contains(&"native-nftables"));
    // Set back, nothing waits any more.
    assert!(start.changed_to(&start, true).waiting.is_empty());
}
