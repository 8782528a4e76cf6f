//! Addresses, replaced by names: the same address by the same name everywhere in the report.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The names so far.
#[derive(Debug, Default)]
pub(super) struct AddressNames(HashMap<IpAddr, usize>);

impl AddressNames {
    /// The text with a name for each address. Loopback addresses and "any" say nothing of a network, and stay.
    pub(super) fn replace(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        let mut before = ' ';
        while let Some(first) = rest.chars().next() {
            if let Some((ip, length)) = address_at(rest, before) {
                self.name(ip, &rest[..length], &mut out);
                before = '0';
                rest = &rest[length..];
                continue;
            }
            out.push(first);
            before = first;
            rest = &rest[first.len_utf8()..];
        }
        out
    }

    fn name(&mut self, ip: IpAddr, text: &str, out: &mut String) {
        let ip = ip.to_canonical();
        if ip.is_loopback() || ip.is_unspecified() {
            return out.push_str(text);
        }
        let next = self.0.len() + 1;
        let number = self.0.entry(ip).or_insert(next);
        out.push_str(&format!("{}-{number}", if ip.is_ipv4() { "ip4" } else { "ip6" }));
    }
}

/// The address with which a text begins, and its length.
fn address_at(text: &str, before: char) -> Option<(IpAddr, usize)> {
    if before.is_ascii_digit() || before == '.' {
        return None;
    }
    if !before.is_ascii_alphanumeric() && before != ':' {
        let run = text.bytes().take_while(|byte| byte.is_ascii_hexdigit() || b":.".contains(byte)).count();
        let token = text[..run].trim_end_matches('.');
        // A colon may end a sentence, or two may be the address's own.
        for token in [token, token.trim_end_matches(':')] {
            if token.matches(':').count() >= 2
                && let Ok(ip) = token.parse::<Ipv6Addr>()
            {
                return Some((ip.into(), token.len()));
            }
        }
    }
    ['.', '-'].into_iter().find_map(|separator| ipv4_at(text, separator, before))
}

/// Four numbers, also with dashes between, as in names of machines and in those that a cluster's DNS gives to pods.
fn ipv4_at(text: &str, separator: char, before: char) -> Option<(IpAddr, usize)> {
    if separator == '-' && before.is_ascii_alphanumeric() {
        return None;
    }
    let mut octets = [0; 4];
    let mut at = 0;
    for (index, octet) in octets.iter_mut().enumerate() {
        if index > 0 {
            at += text[at..].starts_with(separator).then_some(1)?;
        }
        let digits = text[at..].bytes().take_while(u8::is_ascii_digit).count();
        *octet = text.get(at..at + digits).filter(|_| (1..=3).contains(&digits))?.parse().ok()?;
        at += digits;
    }
    let after = &text.as_bytes()[at..];
    let goes_on = after.first() == Some(&(separator as u8)) && after.get(1).is_some_and(u8::is_ascii_digit);
    let is_word = separator == '-' && after.first().is_some_and(u8::is_ascii_alphanumeric);
    (!goes_on && !is_word).then(|| (Ipv4Addr::from(octets).into(), at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_address_has_the_same_name_and_what_is_none_stays() {
        let mut names = AddressNames::default();
        for (text, replaced) in [
            ("10.0.0.1:443 to 10.0.0.2/24, 10.0.0.1.", "ip4-1:443 to ip4-2/24, ip4-1."),
            ("[2001:db8::1]:443 2001:db8::/32 ::ffff:10.0.0.1", "[ip6-3]:443 ip6-4/32 ip4-1"),
            ("ip6: 2001:db8::1: dead", "ip6: ip6-3: dead"),
            (
                "node ip-10-0-0-1.ec2.internal, 10-0-0-2.shop.pod",
                "node ip-ip4-1.ec2.internal, ip4-2.shop.pod",
            ),
            ("src=10.0.0.1 v10.0.0.2", "src=ip4-1 vip4-2"),
            ("127.0.0.1 ::1 0.0.0.0/0 ::/0", "127.0.0.1 ::1 0.0.0.0/0 ::/0"),
            (
                "12:30:45 2026-11-30 1.2.3 256.1.1.1 1.2.3.4.5 std::io x::y",
                "12:30:45 2026-11-30 1.2.3 256.1.1.1 1.2.3.4.5 std::io x::y",
            ),
            ("fe80::a%eth0 aa:bb:cc:dd:ee:ff é", "ip6-5%eth0 aa:bb:cc:dd:ee:ff é"),
        ] {
            assert_eq!(names.replace(text), replaced);
        }
    }
}
