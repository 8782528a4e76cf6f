use super::*;

fn container(name: &str, user: Option<i64>, group: Option<i64>) -> Container {
    Container { name: name.to_owned(), run_as_user: user, run_as_group: group, ..Container::default() }
}

fn look(pod: &Pod, settings: &Settings) -> Exempt {
    let proxy: Vec<&Container> = pod.all_containers().filter(|c| c.name == PROXY_CONTAINER).collect();
    find(pod, &proxy, settings)
}

/// A pod with the usual proxy and these containers.
fn with(containers: Vec<Container>) -> Pod {
    let proxy = container(PROXY_CONTAINER, Some(1337), Some(1337));
    Pod { containers: containers.into_iter().chain([proxy]).collect(), ..Pod::default() }
}

#[test]
fn an_application_with_an_id_of_the_proxy_is_a_gap() {
    let found = |pod_ids: (Option<i64>, Option<i64>), app: (Option<i64>, Option<i64>)| {
        let pod = with(vec![container("web", app.0, app.1)]);
        let exempt =
            look(&Pod { run_as_user: pod_ids.0, run_as_group: pod_ids.1, ..pod }, &Settings::default());
        assert_eq!(exempt.warnings, [""; 0]);
        exempt.gaps.first().map(|gap| gap.split(',').next().unwrap_or_default().to_owned())
    };
    let none = (None, None);
    for (pod, app, text) in [
        (none, none, None),
        (none, (Some(7), Some(8)), None),
        (none, (Some(0), Some(0)), None),
        (none, (Some(-1), Some(i64::MAX)), None),
        (none, (Some(1337), None), Some("container web runs as user 1337")),
        (none, (Some(7), Some(1337)), Some("container web runs as group 1337")),
        (none, (Some(1337), Some(1337)), Some("container web runs as user 1337 or group 1337")),
        // The container's own comes first, each by itself.
        ((Some(1337), None), none, Some("container web runs as user 1337")),
        ((None, Some(1337)), (Some(5), None), Some("container web runs as group 1337")),
        ((Some(1337), Some(1337)), (Some(5), None), Some("container web runs as group 1337")),
        ((Some(1337), Some(1337)), (Some(5), Some(6)), None),
    ] {
        assert_eq!(found(pod, app).as_deref(), text, "{pod:?} {app:?}");
    }
}

#[test]
fn the_ids_are_those_that_the_rules_exempt() {
    let settings = Settings { proxy_uids: vec![2000], proxy_gids: vec![3000], ..Settings::default() };
    let pod = with(vec![container("a", Some(1337), Some(1337)), container("b", Some(2000), None)]);
    let gaps = look(&pod, &settings).gaps;
    assert!(gaps.len() == 1 && gaps[0].starts_with("container b runs as user 2000, "), "{gaps:?}");
}

#[test]
fn many_are_told_in_one_short_text() {
    let app = |n: usize| container(&format!("{}{n}", "x".repeat(60)), Some(1337), Some(1337));
    for (count, part) in [(2, "0, x"), (3, "2 run as"), (9, " and 6 more run as user 1337 or group 1337, ")] {
        let gaps = look(&with((0..count).map(app).collect()), &Settings::default()).gaps;
        assert!(gaps.len() == 1 && gaps[0].contains(part) && gaps[0].len() < 450, "{gaps:?}");
    }
}

/// The injector's own test of the rules runs as the proxy in every pod; other init containers do it on purpose, and native sidecars serve.
#[test]
fn what_ends_before_the_others_start_is_no_gap() {
    let as_proxy = |name: &str| container(name, Some(1337), None);
    let serves = |name: &str| Container { restarts_always: true, ..as_proxy(name) };
    let found = |init: Container| {
        let exempt = look(&Pod { init_containers: vec![init], ..with(vec![]) }, &Settings::default());
        (exempt.gaps.len(), exempt.warnings.len())
    };
    assert_eq!(found(as_proxy("istio-validation")), (0, 0));
    assert_eq!(found(serves("istio-proxy")), (0, 0));
    assert_eq!(found(as_proxy("migrate")), (0, 1));
    assert_eq!(found(serves("cache")), (1, 0));
    assert_eq!(found(serves("istio-validation")), (1, 0));
}

#[test]
fn a_proxy_that_runs_as_root_needs_its_group() {
    let gaps = |pod: (Option<i64>, Option<i64>), user, group| {
        let containers = vec![container("web", Some(5), Some(5)), container(PROXY_CONTAINER, user, group)];
        let pod = Pod { containers, run_as_user: pod.0, run_as_group: pod.1, ..Pod::default() };
        look(&pod, &Settings::default()).gaps.len()
    };
    let none = (None, None);
    assert_eq!(gaps(none, Some(0), None), 1);
    assert_eq!(gaps(none, Some(0), Some(0)), 1);
    assert_eq!(gaps((Some(0), Some(0)), None, None), 1);
    assert_eq!(gaps((Some(0), None), None, Some(1337)), 0);
    assert_eq!(gaps(none, Some(0), Some(1337)), 0, "as the injector has it for TPROXY");
    assert_eq!(gaps((None, Some(1337)), Some(0), None), 0);
    assert_eq!(gaps(none, None, Some(0)), 0, "the image's user is the proxy's");
    assert_eq!(gaps(none, None, None), 0);
}
