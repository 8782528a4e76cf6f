use facts::object::Object;

fn reason(text: &str) -> String {
    super::from_slice::<Object>(text.as_bytes()).unwrap_err().reason
}

#[test]
fn misfits_name_field_and_types_and_quote_nothing() {
    for (text, expected) in [
        (
            r#"{"metadata":{"annotations":{"traffic.sidecar.istio.io/excludeOutboundPorts":8675309}}}"#,
            r#"metadata.annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] is a number, must be text; write it in quotes"#,
        ),
        (
            r#"{"spec":{"containers":[{},{"env":[{"name":"A","value":true}]}]}}"#,
            "spec.containers[1].env[0].value is true or false, must be text; write it in quotes",
        ),
        (
            r#"{"spec":{"containers":[{"env":[{"value":"hunter2"}]}]}}"#,
            "spec.containers[0].env[0] has no name",
        ),
        (
            r#"{"spec":{"containers":[{"args":"hunter2"}]}}"#,
            "spec.containers[0].args is text, must be a list",
        ),
        (
            r#"{"spec":{"containers":[{"args":[1.5]}]}}"#,
            "spec.containers[0].args[0] is a number, must be text; write it in quotes",
        ),
        (
            r#"{"spec":{"containers":[{"args":[{"hunter2":1}]}]}}"#,
            "spec.containers[0].args[0] is a mapping, must be text",
        ),
        (
            r#"{"spec":{"hostNetwork":"hunter2, expected nothing at line 7"}}"#,
            "spec.hostNetwork is text, must be true or false",
        ),
        (r#"{"spec":{"initContainers":["hunter2"]}}"#, "spec.initContainers[0] is text, must be a mapping"),
        (
            r#"{"spec":{"containers":[{"securityContext":{"runAsUser":99999999999999999999}}]}}"#,
            "spec.containers[0].securityContext.runAsUser is a number, must be a whole number",
        ),
        (r#"{"kind":"Pod","kind":"hunter2"}"#, "a field of the object is there twice"),
        (r#""hunter2""#, "the object is text, must be a mapping"),
        (r#"{"kind":"hunter2"#, "EOF while parsing a string"),
        (r#"{"kind":"Pod"} hunter2"#, "trailing characters"),
    ] {
        assert_eq!(reason(text), expected, "{text}");
    }
}
