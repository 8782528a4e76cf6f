use super::*;

#[test]
fn scalars_are_quoted_unless_they_can_only_be_texts() {
    assert_eq!(scalar("https://10.96.0.1:443"), "https://10.96.0.1:443");
    assert_eq!(scalar("https://[fd00::1]:443"), "https://[fd00::1]:443");
    assert_eq!(scalar("eyJhbGciOiJSUzI1NiJ9.e30.c2ln_-x"), "eyJhbGciOiJSUzI1NiJ9.e30.c2ln_-x");
    for text in ["", "true", "1234567890", "1e10", "a b c d e f", "token\n", "abcdefghij:", "quote\"quote"] {
        assert_eq!(serde_json::from_str::<String>(&scalar(text)).unwrap(), text);
    }
}
