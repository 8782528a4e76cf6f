use super::LiveUpdates::{Off, On, Safe};
use super::*;
use capture::settings::{DnsCapture, PortChoice};

fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings);
    settings
}

fn refused(change: &LiveChange) -> &'static str {
    match change {
        LiveChange::Refuse(refused) => refused.event_reason(),
        other => panic!("not refused: {other:?}"),
    }
}

/// A captured pod whose proxy runs.
fn captured<'a>(in_force: &'a Settings, wanted: CaptureWish<'a>) -> LiveSidecar<'a> {
    LiveSidecar { in_force: Some(in_force), wanted, proxy: Proxy::Running }
}

#[test]
fn lists_and_switches_are_applied_while_the_proxy_runs() {
    let old = Settings::default();
    let changes: [fn(&mut Settings); 9] = [
        |s| s.inbound_ports = PortChoice::Only(vec![80]),
        |s| s.inbound_ports_excluded = PortChoice::Only(vec![81]),
        |s| s.outbound_ports = PortChoice::Only(vec![443]),
        |s| s.outbound_ports_excluded = PortChoice::Only(vec![9090]),
        |s| s.outbound_ranges_excluded.v4.push(capture::settings::default_loopback()),
        |s| s.excluded_interfaces = vec!["net1".to_owned()],
        |s| s.reroute_interfaces = vec!["tap0".to_owned()],
        |s| s.dns = DnsCapture::All,
        |s| s.drop_invalid = true,
    ];
    for apply in changes {
        let new = settings(apply);
        let pod = |proxy| LiveSidecar { proxy, ..captured(&old, CaptureWish::Captured(&new)) };
        assert_eq!(
            [Off, Safe, On].map(|updates| change(&pod(Proxy::Running), updates)),
            [LiveChange::Nothing, LiveChange::Apply, LiveChange::Apply]
        );
        assert_eq!(change(&pod(Proxy::Silent), On), LiveChange::Nothing, "it is not known to run");
    }
    assert_eq!(
        change(&captured(&old, CaptureWish::Captured(&old)), On),
        LiveChange::Nothing,
        "nothing has changed"
    );
}

#[test]
fn text_that_cannot_be_used_changes_nothing_and_is_told() {
    let old = Settings::default();
    let pod = captured(&old, CaptureWish::Invalid("port list \"x\"".to_owned()));
    assert_eq!(change(&pod, Off), LiveChange::Nothing);
    for updates in [Safe, On] {
        let change = change(&pod, updates);
        assert_eq!(refused(&change), "CaptureSettingsInvalid");
        let LiveChange::Refuse(refused) = change else { panic!() };
        assert!(refused.to_string().starts_with("port list \"x\"; the rules of before"), "{refused}");
    }
}

#[test]
fn what_a_running_proxy_cannot_follow_is_refused() {
    type Set = fn(&mut Settings);
    let old = Settings::default();
    let changes: [(&str, Set); 6] = [
        ("mode", |s| s.mode = Mode::Tproxy),
        ("outbound port", |s| s.proxy_port = 15101),
        ("inbound port", |s| s.capture_port = 15106),
        ("tunnel port", |s| s.tunnel_port = 15108),
        ("user", |s| s.proxy_uids = vec![1338]),
        ("group", |s| s.proxy_gids = vec![1338]),
    ];
    for (name, apply) in changes {
        let new = settings(apply);
        for (from, to) in [(&old, &new), (&new, &old)] {
            let pod = captured(from, CaptureWish::Captured(to));
            assert_eq!(change(&pod, Off), LiveChange::Nothing);
            for updates in [Safe, On] {
                let LiveChange::Refuse(refused) = change(&pod, updates) else { panic!("{name}") };
                assert_eq!(refused.event_reason(), "CaptureChangeNeedsRestart");
                assert!(refused.to_string().contains(name), "{refused}");
            }
        }
    }
    let (one, two) =
        [133, 134].map(|table| settings(|s| (s.mode, s.tproxy_table) = (Mode::Tproxy, table))).into();
    assert_eq!(
        refused(&change(&captured(&one, CaptureWish::Captured(&two)), On)),
        "CaptureChangeNeedsRestart"
    );
}

#[test]
fn a_pod_that_is_to_be_left_alone_drains_only_where_that_is_wanted_or_nothing_can_suffer() {
    let old = Settings::default();
    let wanted = CaptureWish::LeftAlone("label sidecar.istio.io/inject is false".to_owned());
    let pod = |proxy| LiveSidecar { in_force: Some(&old), wanted: wanted.clone(), proxy };
    assert_eq!(change(&pod(Proxy::Running), Off), LiveChange::Nothing);
    assert_eq!(refused(&change(&pod(Proxy::Running), Safe)), "CaptureChangeNeedsRestart");
    assert_eq!(change(&pod(Proxy::Running), On), LiveChange::Drain);
    assert_eq!(
        [Off, Safe, On].map(|updates| change(&pod(Proxy::Silent), updates)),
        [LiveChange::Nothing, LiveChange::Drain, LiveChange::Drain]
    );
}

#[test]
fn rules_of_which_no_record_says_that_they_are_ours_stay() {
    let settings = Settings::default();
    let left_alone = CaptureWish::LeftAlone("container istio-init".to_owned());
    for wanted in [left_alone, CaptureWish::Captured(&settings), CaptureWish::Invalid("x".to_owned())] {
        for proxy in [Proxy::Silent, Proxy::Running] {
            let pod = LiveSidecar { in_force: None, wanted: wanted.clone(), proxy };
            assert_eq!(
                LiveUpdates::ALL.map(|updates| change(&pod, updates)),
                [const { LiveChange::Nothing }; 3]
            );
        }
    }
}

#[test]
fn options_of_ambient_pods_are_applied_unless_that_is_off() {
    let (old, new) = (PodOptions::default(), PodOptions { ingress: true, ..PodOptions::default() });
    assert_eq!([Off, Safe, On].map(|updates| applies_options(&old, &new, updates)), [false, true, true]);
    assert!(!applies_options(&new, &new, On));
}

#[test]
fn the_option_reads_its_own_names_only() {
    for updates in LiveUpdates::ALL {
        assert_eq!(LiveUpdates::parse(updates.name()), Some(updates));
    }
    for text in ["", "true", "Safe", "safe "] {
        assert_eq!(LiveUpdates::parse(text), None);
    }
}
