//! Blocks without their exceptions.

use facts::networkpolicy::Block;
use ipnet::IpNet;

/// The prefixes that have the addresses of a block.
pub(super) fn prefixes(block: &Block) -> Vec<IpNet> {
    let mut found = Vec::new();
    without(block.net, &block.except, &mut found);
    found
}

/// Halves a prefix until each part is in an exception or outside of all.
fn without(net: IpNet, except: &[IpNet], found: &mut Vec<IpNet>) {
    if except.iter().any(|part| part.contains(&net)) {
        return;
    }
    let inside: Vec<IpNet> = except.iter().filter(|part| net.contains(*part)).copied().collect();
    if inside.is_empty() {
        found.push(net);
        return;
    }
    // A prefix with a smaller part can be halved.
    for half in net.subnets(net.prefix_len() + 1).into_iter().flatten() {
        without(half, &inside, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_cut_out() {
        for (net, except, expected) in [
            ("10.0.0.0/8", vec![], vec!["10.0.0.0/8"]),
            ("10.0.0.0/30", vec!["10.0.0.1/32"], vec!["10.0.0.0/32", "10.0.0.2/31"]),
            ("10.0.0.0/31", vec!["10.0.0.0/32", "10.0.0.1/32"], vec![]),
            ("10.0.0.0/29", vec!["10.0.0.0/30", "10.0.0.1/32"], vec!["10.0.0.4/30"]),
            ("::/0", vec!["8000::/1"], vec!["::/1"]),
        ] {
            let except: Vec<String> = except.into_iter().map(String::from).collect();
            let block = Block::parse(net, &except).unwrap();
            let found: Vec<String> = prefixes(&block).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{net} without {except:?}");
        }
        let all: Vec<String> = (0..1000u32).map(|n| format!("10.{}.{}.1/32", n / 256, n % 256)).collect();
        let block = Block::parse("10.0.0.0/8", &all).unwrap();
        let cut = prefixes(&block);
        let size: u32 = cut.iter().map(|net| 1 << (32 - net.prefix_len())).sum();
        assert_eq!(size, (1 << 24) - 1000);
        assert!(!block.except.iter().any(|part| cut.iter().any(|net| net.contains(part))));
    }
}
