use super::*;

#[test]
fn names_of_files_stay_in_their_directory() {
    assert_eq!(facts_file("shop", "web-0").as_deref(), Some("shop_web-0.json"));
    for (namespace, name) in
        [("..", "x"), ("a/b", "x"), ("", "x"), ("a", ""), ("a", "../x"), ("A", "x"), ("a", ".x")]
    {
        assert_eq!(facts_file(namespace, name), None, "{namespace}/{name}");
    }
    assert_eq!(facts_file(&"a".repeat(63), &"b".repeat(253)), None);
}

#[test]
fn a_report_of_another_version_is_read() {
    let text =
        r#"{"operation":"add","result":"captured","phases":{"facts":0.25,"new":1},"added":{"later":true}}"#;
    let report: OperationReport = serde_json::from_str(text).unwrap();
    assert_eq!(report.result, Outcome::Captured);
    assert_eq!(report.phases.iter().collect::<Vec<_>>(), [("facts", 0.25)]);
    assert_eq!(serde_json::from_str::<OperationReport>("{}").unwrap().result, Outcome::Failed);
}
