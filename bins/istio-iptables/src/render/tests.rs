use capture::Settings;
use capture::plan::PlanTarget;
use capture::settings::Mode;

use super::*;

fn text(backend: Backend, mode: Mode, ipv6: bool) -> String {
    let settings = Settings { mode, ..Settings::default() };
    plan(&capture::plan(&settings, PlanTarget { backend, ipv6 })).unwrap()
}

/// What is behind a comment, up to the next one.
fn part<'a>(text: &'a str, comment: &str) -> &'a str {
    let (_, rest) =
        text.split_once(&format!("{comment}\n")).unwrap_or_else(|| panic!("no {comment}: {text}"));
    rest.split("\n# ").next().unwrap_or_default()
}

#[test]
fn iptables_has_a_part_for_each_family() {
    let both = text(Backend::Iptables, Mode::Redirect, true);
    for comment in ["# iptables-restore --noflush", "# ip6tables-restore --noflush"] {
        let part = part(&both, comment);
        assert!(part.starts_with("*nat\n") && part.trim_end().ends_with("COMMIT"), "{part}");
    }
    assert!(both.contains("# ip address add ::6/128 dev lo\n"));
    let v4 = text(Backend::Iptables, Mode::Redirect, false);
    assert!(!v4.contains("ip6tables") && !v4.contains("# ip "), "{v4}");
}

#[test]
fn nftables_is_one_transaction() {
    let text = text(Backend::Nftables, Mode::Tproxy, true);
    let rules = part(&text, "# nft -f -");
    assert!(rules.lines().all(|line| line.starts_with("add ") || line.starts_with("delete ")), "{rules}");
    for step in [
        "# ip rule add priority 32765 fwmark 1337 lookup 133",
        "# ip -6 rule add priority 32765 fwmark 1337 lookup 133",
        "# ip route add local default dev lo table 133",
        "# ip -6 route add local default dev lo table 133",
    ] {
        assert!(text.contains(step), "{step}: {text}");
    }
}

#[test]
fn a_cleanup_names_both_backends_and_the_routing() {
    let settings = crate::config::widest(&Settings::default());
    let text = cleanup(&capture::plan(&settings, PlanTarget { backend: Backend::Iptables, ipv6: true }));
    for part in [
        "in table nat, chains ISTIO_INBOUND",
        "delete table inet istio-proxy-nat\n",
        "delete table inet istio-proxy-mangle\n",
        "# ip rule del priority 32765 fwmark 1337 lookup 133\n",
        "# ip -6 route del local default dev lo table 133\n",
        "# ip address del ::6/128 dev lo\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
