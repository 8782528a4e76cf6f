//! Users and groups, from the text of `/etc/passwd` and `/etc/group`.
//!
//! Not by `getpwnam(3)`: that may ask a directory in the network, which on some nodes takes half a minute to fail.

/// Where users are.
pub(crate) const PASSWD: &str = "/etc/passwd";
/// Where groups are.
pub(crate) const GROUP: &str = "/etc/group";

/// The number of a user in passwd(5), or of a group in group(5): both have the name first and the number third.
pub(crate) fn parse_number(text: &str, name: &str) -> Option<u32> {
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_the_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nistio-proxy2:x:7:7::/:/bin/false\n\n\
                      istio-proxy:x:1338:1339::/home:/bin/sh\nbroken:x:many:1::/:\nshort:x\n";
        assert_eq!(parse_number(passwd, "istio-proxy"), Some(1338));
        assert_eq!(parse_number(passwd, "root"), Some(0));
        for unknown in ["istio", "broken", "short", "", "x"] {
            assert_eq!(parse_number(passwd, unknown), None, "{unknown}");
        }
    }
}
