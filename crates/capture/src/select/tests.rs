#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;

const MODE: &str = "istio.io/dataplane-mode";

fn requirement(key: &str, operator: &str, values: &[&str]) -> Requirement {
    Requirement {
        key: key.into(),
        operator: operator.into(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    }
}

fn labels(key: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: [(key.to_owned(), value.to_owned())].into(), ..Default::default() }
}

/// AA-23: what the chart has.
fn default_selectors() -> Selectors {
    let not_none = LabelSelector {
        match_expressions: vec![requirement(MODE, "NotIn", &["none"])],
        ..Default::default()
    };
    Selectors::new(&[
        EnablementSelector { pod: labels(MODE, "ambient"), ..Default::default() },
        EnablementSelector { pod: not_none, namespace: labels(MODE, "ambient") },
    ])
    .unwrap()
}

fn ask(
    selectors: &Selectors,
    ns: Option<Option<&str>>,
    pod: Option<&str>,
    injected: bool,
    host: bool,
) -> Eligibility {
    let of = |value: Option<&str>| {
        let value = value.map(|value| -> &'static str { Box::leak(value.to_owned().into_boxed_str()) });
        move |key: &str| value.filter(|_| key == MODE)
    };
    let (pod, namespace) = (of(pod), ns.map(of));
    let subject = Subject { host_network: host, injected, labels: &pod };
    selectors.eligible(subject, namespace.as_ref().map(|namespace| namespace as Labels<'_>))
}

/// The table of AA-23.
#[test]
fn c06_host_network_sidecars_and_none_are_never_touched() {
    use Eligibility::{Eligible, Not};
    let selectors = default_selectors();
    for (ns, pod, injected, host, wanted) in [
        (Some("ambient"), None, false, false, Eligible),
        (None, Some("ambient"), false, false, Eligible),
        (Some("ambient"), Some("none"), false, false, Not(Ineligible::NotSelected)),
        (Some("ambient"), Some("ambient"), true, false, Not(Ineligible::Injected)),
        (Some("ambient"), None, false, true, Not(Ineligible::HostNetwork)),
        (Some("ambient"), None, true, true, Not(Ineligible::HostNetwork)),
        (None, None, false, false, Not(Ineligible::NotSelected)),
    ] {
        assert_eq!(
            ask(&selectors, Some(ns), pod, injected, host),
            wanted,
            "{ns:?} {pod:?} {injected} {host}"
        );
    }
}

#[test]
fn an_unknown_namespace_matters_only_where_it_decides() {
    let selectors = default_selectors();
    assert_eq!(ask(&selectors, None, Some("ambient"), false, false), Eligibility::Eligible);
    assert_eq!(ask(&selectors, None, None, false, false), Eligibility::NeedsNamespace);
    let not = Eligibility::Not(Ineligible::NotSelected);
    assert_eq!(ask(&selectors, None, Some("none"), false, false), not);
}

#[test]
fn c21_empty_text_default_and_namespace_only() {
    let not = Eligibility::Not(Ineligible::NotSelected);
    let nothing = Selectors::new(&[]).unwrap();
    assert_eq!(ask(&nothing, Some(Some("ambient")), Some("ambient"), false, false), not);
    assert!(nothing.is_empty());
    let everything = Selectors::new(&[EnablementSelector::default()]).unwrap();
    assert_eq!(ask(&everything, None, None, false, false), Eligibility::Eligible);
    assert!(!everything.selects_namespace(&|_| Some("ambient")), "AA-22");
    let by_namespace = EnablementSelector { namespace: labels(MODE, "ambient"), ..Default::default() };
    let by_namespace = Selectors::new(&[by_namespace]).unwrap();
    assert_eq!(ask(&by_namespace, Some(Some("ambient")), Some("none"), false, false), Eligibility::Eligible);
    assert_eq!(ask(&by_namespace, Some(None), Some("ambient"), false, false), not);
    assert!(by_namespace.selects_namespace(&|_| Some("ambient")));
    assert!(default_selectors().selects_namespace(&|_| Some("ambient")));
    assert!(!default_selectors().selects_namespace(&|_| None));
}

#[test]
fn absent_labels() {
    let of = |operator: &str, values: &[&str]| {
        let pod = LabelSelector {
            match_expressions: vec![requirement("a", operator, values)],
            ..Default::default()
        };
        let selectors = Selectors::new(&[EnablementSelector { pod, ..Default::default() }]).unwrap();
        let ask = |value: Option<&'static str>| {
            let labels = move |_: &str| value;
            let subject = Subject { host_network: false, injected: false, labels: &labels };
            selectors.eligible(subject, None) == Eligibility::Eligible
        };
        [ask(None), ask(Some("x")), ask(Some("y"))]
    };
    assert_eq!(of("In", &["x"]), [false, true, false]);
    assert_eq!(of("NotIn", &["x"]), [true, false, true]);
    assert_eq!(of("Exists", &[]), [false, true, true]);
    assert_eq!(of("DoesNotExist", &[]), [true, false, false]);
}

#[test]
fn what_means_nothing_is_refused() {
    let refused = |requirement: Requirement| {
        let pod = LabelSelector { match_expressions: vec![requirement], ..Default::default() };
        let entries = [EnablementSelector::default(), EnablementSelector { pod, ..Default::default() }];
        Selectors::new(&entries).unwrap_err().to_string()
    };
    for (key, operator, values, says) in [
        ("a", "Is", &[][..], "operator \"Is\" is none of"),
        ("a", "in", &["x"], "operator \"in\""),
        ("a", "", &["x"], "operator \"\""),
        ("a", "In", &[], "In of \"a\" needs values"),
        ("a", "Exists", &["x"], "Exists of \"a\" has no values"),
        ("", "Exists", &[], "is not the key"),
        ("-a", "Exists", &[], "is not the key"),
        ("a b", "Exists", &[], "is not the key"),
        ("A.b/c", "Exists", &[], "is not the key"),
        ("/c", "Exists", &[], "is not the key"),
        ("a/b/c", "Exists", &[], "is not the key"),
        ("a\nb", "Exists", &[], "is not the key"),
        ("a", "In", &["x y"], "is not the value"),
        ("a", "In", &["x\""], "is not the value"),
    ] {
        let text = refused(requirement(key, operator, values));
        assert!(
            text.contains(says) && text.contains("entry 2") && text.contains("podSelector"),
            "{key:?} {operator}: {text}"
        );
        assert!(!text.contains('\n'), "{text}");
    }
    let long = "a".repeat(64);
    assert!(refused(requirement(&long, "Exists", &[])).contains("is not the key"));
    let namespace = labels("a", &long);
    let entry = EnablementSelector { namespace, ..Default::default() };
    assert!(Selectors::new(&[entry]).unwrap_err().to_string().contains("namespaceSelector"));
}
