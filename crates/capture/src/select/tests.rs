#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;

const MODE: &str = "istio.io/dataplane-mode";

fn requirement(key: &str, operator: &str, values: &[&str]) -> WrittenRequirement {
    WrittenRequirement {
        key: key.into(),
        operator: operator.into(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    }
}

fn labels(key: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: [(key.to_owned(), value.to_owned())].into(), ..Default::default() }
}

/// What the chart has.
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

fn ask(selectors: &Selectors, ns: Option<Option<&str>>, pod: Option<&str>) -> Selection {
    let of = |value: Option<&str>| {
        let value = value.map(|value| -> &'static str { Box::leak(value.to_owned().into_boxed_str()) });
        move |key: &str| value.filter(|_| key == MODE)
    };
    let (pod, namespace) = (of(pod), ns.map(of));
    selectors.select(&pod, namespace.as_ref().map(|namespace| namespace as Labels<'_>))
}

#[test]
fn an_unknown_namespace_matters_only_where_it_decides() {
    use Selection::{NeedsNamespace, NotSelected, Selected};
    for (namespace, pod, wanted) in [
        (None, Some("ambient"), Selected),
        (None, None, NeedsNamespace),
        (None, Some("none"), NotSelected),
        (Some(Some("ambient")), None, Selected),
        (Some(Some("ambient")), Some("none"), NotSelected),
        (Some(None), Some("ambient"), Selected),
        (Some(None), None, NotSelected),
    ] {
        assert_eq!(ask(&default_selectors(), namespace, pod), wanted, "{namespace:?} {pod:?}");
    }
}

#[test]
fn no_entry_matches_nothing_and_an_empty_one_everything() {
    use Selection::{NotSelected, Selected};
    let nothing = Selectors::new(&[]).unwrap();
    assert_eq!(ask(&nothing, Some(Some("ambient")), Some("ambient")), NotSelected);
    assert!(nothing.is_empty());
    let everything = Selectors::new(&[EnablementSelector::default()]).unwrap();
    assert_eq!(ask(&everything, None, None), Selected);
    assert!(!everything.selects_namespace(&|_| Some("ambient")), "it does not look at namespaces");
    let by_namespace = EnablementSelector { namespace: labels(MODE, "ambient"), ..Default::default() };
    let by_namespace = Selectors::new(&[by_namespace]).unwrap();
    assert_eq!(ask(&by_namespace, Some(Some("ambient")), Some("none")), Selected);
    assert_eq!(ask(&by_namespace, Some(None), Some("ambient")), NotSelected);
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
        let ask =
            |value: Option<&'static str>| selectors.select(&move |_| value, None) == Selection::Selected;
        [ask(None), ask(Some("x")), ask(Some("y"))]
    };
    assert_eq!(of("In", &["x"]), [false, true, false]);
    assert_eq!(of("NotIn", &["x"]), [true, false, true]);
    assert_eq!(of("Exists", &[]), [false, true, true]);
    assert_eq!(of("DoesNotExist", &[]), [true, false, false]);
}

#[test]
fn what_means_nothing_is_refused() {
    let refused = |requirement: WrittenRequirement| {
        let pod = LabelSelector { match_expressions: vec![requirement], ..Default::default() };
        let entries = [EnablementSelector::default(), EnablementSelector { pod, ..Default::default() }];
        Selectors::new(&entries).unwrap_err().to_string()
    };
    for (key, operator, values, says) in [
        ("a", "Is", &[][..], "operator \"Is\" is not In"),
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
