//! Lines of iptables-save back into rules.

use std::borrow::Cow;

use ipnet::IpNet;

use super::{SHORTENED, in_order, own_chain_name};
use crate::check::is_name;
use crate::rule::{
    ALL_BITS, Action, Counting, CtState, Family, Limit, Match, Ports, Protocol, RejectWith, Rule,
};
use crate::set::KeyType;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Reads a rule as `iptables-save` prints it, or as [`render_rule`](super::render_rule) writes it: matches and target, without
/// `-A CHAIN`. The result is in [`canonical`] form.
///
/// `None` when the rule has a part that the rule language lacks; such a rule cannot be one of ours.
#[must_use]
pub fn parse_rule(text: &str) -> Option<Rule> {
    let mut words = Words { words: text.split_ascii_whitespace().peekable() };
    let mut matches = Vec::new();
    let (mut extension, mut counting) = ("", Counting::Rule);
    let mut limit: Option<Limit> = None;
    loop {
        let not = words.take_if("!");
        match words.next()? {
            "-j" if !not => {
                let mut action = parse_action(&mut words)?;
                match (&mut action, limit) {
                    (Action::Log { limit, .. }, found) => *limit = found,
                    (_, None) => {}
                    (_, Some(_)) => return None,
                }
                let rule = Rule { counting, ..Rule::new(matches, action, "") };
                return words.next().is_none().then(|| canonical(&rule));
            }
            "-m" if !not => {
                extension = words.next()?;
                // With an option of its own it is a match of a port.
                let protocol = parse_protocol(extension).is_some_and(Protocol::has_ports);
                if protocol && matches!(words.peek(), Some("-j" | "-m")) {
                    matches.push(Match::WholeHeader);
                }
            }
            "--comment" if !not && extension == "comment" => {
                counting = Counting::Named(words.next().filter(|name| is_name(name))?.to_owned().into());
            }
            // The program does not print its own default burst.
            "--limit" if !not && extension == "limit" => {
                let per_second = words.next()?.strip_suffix("/sec")?.parse().ok()?;
                limit = Some(Limit { per_second, burst: 5 });
            }
            "--limit-burst" if !not => limit.as_mut()?.burst = words.number()?,
            option => matches.push(parse_match(extension, option, not, &mut words)?),
        }
    }
}

/// The form in which two rules that say the same to iptables are equal: matches in the order of the text, without those that
/// always hold, addresses without host bits, no lists of one port, no opposite of a range where a range says the same, nothing that
/// iptables does not store (the reason).
#[must_use]
pub fn canonical(rule: &Rule) -> Rule {
    let matches = rule.matches.iter().filter(|m| !always_holds(m)).map(canonical_match);
    let matches = in_order(matches, rule.protocol());
    let named = matches!(rule.counting, Counting::Named(_));
    let counting = if named { rule.counting.clone() } else { Counting::Rule };
    Rule { counting, ..Rule::new(matches, rule.action.clone(), "") }
}

fn always_holds(m: &Match) -> bool {
    matches!(m, Match::Source { net, not: false } | Match::Destination { net, not: false } if net.prefix_len() == 0)
}

fn canonical_match(m: &Match) -> Match {
    match m {
        Match::Source { net, not } => Match::Source { net: net.trunc(), not: *not },
        Match::Destination { net, not } => Match::Destination { net: net.trunc(), not: *not },
        Match::OriginalDestination { net, not } => Match::OriginalDestination { net: net.trunc(), not: *not },
        Match::SourcePort { ports, not } => {
            let (ports, not) = canonical_ports(ports, *not);
            Match::SourcePort { ports, not }
        }
        Match::DestinationPort { ports, not } => {
            let (ports, not) = canonical_ports(ports, *not);
            Match::DestinationPort { ports, not }
        }
        Match::SourceIn { set, keys, not } => {
            Match::SourceIn { set: set.clone(), keys: canonical_keys(*keys), not: *not }
        }
        Match::DestinationIn { set, keys, not } => {
            Match::DestinationIn { set: set.clone(), keys: canonical_keys(*keys), not: *not }
        }
        m => m.clone(),
    }
}

/// The nft variant shows the opposite of a range that begins at 0 or ends at 65535 as the range of the others.
fn canonical_ports(ports: &Ports, not: bool) -> (Ports, bool) {
    let range = |first, last| if first == last { Ports::One(first) } else { Ports::Range(first, last) };
    match (ports, not) {
        (Ports::AnyOf(list), not) if list.len() == 1 => (Ports::One(list[0]), not),
        (Ports::Range(0, last), true) if *last < u16::MAX => (range(last + 1, u16::MAX), false),
        (Ports::Range(first @ 1.., u16::MAX), true) => (range(0, first - 1), false),
        (Ports::Range(first, last), not) => (range(*first, *last), not),
        (ports, not) => (ports.clone(), not),
    }
}

/// The text says how many parts a set's keys have. It does not say whether they are prefixes, nor the family, which the program that printed it
/// does.
fn canonical_keys(keys: KeyType) -> KeyType {
    match keys {
        KeyType::Address(_) | KeyType::Prefix(_) | KeyType::Arrival(_) => KeyType::Address(Family::V4),
        KeyType::Endpoint(_) => KeyType::Endpoint(Family::V4),
    }
}

struct Words<'a> {
    words: std::iter::Peekable<std::str::SplitAsciiWhitespace<'a>>,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.words.next()
    }

    fn peek(&mut self) -> Option<&'a str> {
        self.words.peek().copied()
    }

    fn take_if(&mut self, word: &str) -> bool {
        self.words.next_if(|next| *next == word).is_some()
    }

    fn number<N: std::str::FromStr>(&mut self) -> Option<N> {
        self.next()?.parse().ok()
    }

    /// `0x539` or `1337`, alone or with a mask: `0x539/0xfff`. Bits outside of the mask mean nothing that we could say.
    fn masked(&mut self) -> Option<(u32, u32)> {
        let (mark, mask) = match self.next()?.split_once('/') {
            Some((mark, mask)) => (parse_u32(mark)?, parse_u32(mask)?),
            None => return None,
        };
        (mark & !mask == 0).then_some((mark, mask))
    }

    /// Like [`Self::masked`], also without a mask.
    fn mark_and_mask(&mut self) -> Option<(u32, u32)> {
        let word = *self.words.peek()?;
        if word.contains('/') {
            return self.masked();
        }
        self.next();
        Some((parse_u32(word)?, ALL_BITS))
    }

    /// A mark with the mask of all bits.
    fn mark(&mut self) -> Option<u32> {
        self.masked().filter(|(_, mask)| *mask == ALL_BITS).map(|(mark, _)| mark)
    }
}

fn parse_u32(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Options that every rule has come first; the others belong to the extension that the last `-m` named. A single port belongs to the
/// protocol wherever it stands, but for multiport, which takes it for a short form of its own option.
fn parse_match(extension: &str, option: &str, not: bool, words: &mut Words<'_>) -> Option<Match> {
    Some(match (extension, option) {
        (_, "-i") => Match::InInterface { name: Cow::Owned(words.next()?.to_owned()), not },
        (_, "-o") => Match::OutInterface { name: Cow::Owned(words.next()?.to_owned()), not },
        (_, "-s") => Match::Source { net: parse_net(words.next()?)?, not },
        (_, "-d") => Match::Destination { net: parse_net(words.next()?)?, not },
        (_, "-p") if !not => Match::Protocol(parse_protocol(words.next()?)?),
        ("owner", "--uid-owner") => Match::Uid { uid: words.number()?, not },
        ("owner", "--gid-owner") => Match::Gid { gid: words.number()?, not },
        ("owner", "--socket-exists") if !not => Match::LocalSocket,
        ("addrtype", "--dst-type") if !not && words.take_if("LOCAL") && words.take_if("--limit-iface-in") => {
            Match::OwnDestination
        }
        ("addrtype", "--src-type") if !not && words.take_if("LOCAL") => Match::OwnSource,
        ("mark", "--mark") => {
            let (mark, mask) = words.mark_and_mask()?;
            Match::Mark { mark, mask, not }
        }
        ("connmark", "--mark") => {
            let (mark, mask) = words.mark_and_mask()?;
            Match::CtMark { mark, mask, not }
        }
        ("set", "--match-set") => {
            let set = Cow::Owned(words.next()?.to_owned());
            let (one, two) = (KeyType::Address(Family::V4), KeyType::Endpoint(Family::V4));
            match words.next()? {
                "src" => Match::SourceIn { set, keys: one, not },
                "dst" => Match::DestinationIn { set, keys: one, not },
                "src,src" => Match::SourceIn { set, keys: two, not },
                "dst,dst" => Match::DestinationIn { set, keys: two, not },
                _ => return None,
            }
        }
        ("conntrack", "--ctorigdst") => Match::OriginalDestination { net: parse_net(words.next()?)?, not },
        ("conntrack", "--ctorigdstport") => Match::OriginalPort { ports: parse_range(words.next()?)?, not },
        ("conntrack", "--ctdir") if !not && words.take_if("REPLY") => Match::Reply,
        ("icmp", "--icmp-type") | ("icmp6", "--icmpv6-type") if !not => {
            let mut numbers = words.next()?.splitn(2, '/').map(|number| number.parse().ok());
            let (kind, code) = (numbers.next()??, numbers.next());
            Match::IcmpType { kind, code: code.map_or(Some(None), |code| code.map(Some))? }
        }
        ("conntrack", "--ctstate") if !not => Match::CtState(parse_state(words.next()?)?),
        ("multiport", "--sports") => Match::SourcePort { ports: parse_ports(words.next()?)?, not },
        ("multiport", "--dports") => Match::DestinationPort { ports: parse_ports(words.next()?)?, not },
        (of, "--sport") if of != "multiport" => Match::SourcePort { ports: parse_range(words.next()?)?, not },
        (of, "--dport") if of != "multiport" => {
            Match::DestinationPort { ports: parse_range(words.next()?)?, not }
        }
        _ => return None,
    })
}

fn parse_net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

fn parse_protocol(text: &str) -> Option<Protocol> {
    Protocol::ALL
        .into_iter()
        .find(|protocol| text == protocol.name() || text.parse() == Ok(protocol.number()))
}

fn parse_state(text: &str) -> Option<CtState> {
    let known = |state: &CtState| state.name().eq_ignore_ascii_case(text);
    CtState::ALL
        .into_iter()
        .find(known)
        .or_else(|| (text == "ESTABLISHED,RELATED").then_some(CtState::RelatedOrEstablished))
}

fn parse_ports(text: &str) -> Option<Ports> {
    let ports: Option<Vec<u16>> = text.split(',').map(|port| port.parse().ok()).collect();
    ports.map(Ports::AnyOf)
}

/// `80`, `80:90`.
fn parse_range(text: &str) -> Option<Ports> {
    Some(match text.split_once(':') {
        Some((first, last)) => Ports::Range(first.parse().ok()?, last.parse().ok()?),
        None => Ports::One(text.parse().ok()?),
    })
}

fn parse_action(words: &mut Words<'_>) -> Option<Action> {
    Some(match words.next()? {
        "ACCEPT" => Action::Accept,
        "DROP" => Action::Drop,
        "REJECT" => {
            words.take_if("--reject-with").then_some(())?;
            let name = words.next()?;
            let named = |with: &RejectWith| FAMILIES.iter().any(|of| with.iptables_name(*of) == name);
            Action::Reject(RejectWith::ALL.into_iter().find(named)?)
        }
        "NFLOG" => parse_log(words)?,
        "RETURN" => Action::Return,
        "REDIRECT" => {
            // Old versions print and accept the singular too.
            (words.take_if("--to-ports") || words.take_if("--to-port")).then_some(())?;
            Action::Redirect { port: words.number()? }
        }
        "TPROXY" => parse_tproxy(words)?,
        "MARK" => match words.next()? {
            "--set-xmark" => Action::SetMark(words.mark()?),
            "--set-mark" => Action::SetMark(words.mark_and_mask().filter(|(_, mask)| *mask == ALL_BITS)?.0),
            _ => return None,
        },
        "SNAT" => {
            words.take_if("--to-source").then_some(())?;
            Action::Snat { to: words.number()? }
        }
        "CONNMARK" => {
            let action = match words.next()? {
                "--set-xmark" => {
                    let (mark, mask) = words.masked()?;
                    Action::SetCtMark { mark, mask }
                }
                "--save-mark" => Action::SaveMark,
                "--restore-mark" => Action::RestoreMark,
                _ => return None,
            };
            for option in ["--nfmask", "--ctmask"] {
                if words.take_if(option) && parse_u32(words.next()?)? != ALL_BITS {
                    return None;
                }
            }
            action
        }
        "CT" => {
            words.take_if("--zone").then_some(())?;
            Action::SetZone(words.number()?)
        }
        chain => Action::Jump(Cow::Owned(own_name(chain)?)),
    })
}

fn parse_log(words: &mut Words<'_>) -> Option<Action> {
    let (mut group, mut prefix) = (0, "");
    while let Some(option) = words.next() {
        match option {
            "--nflog-group" => group = words.number()?,
            // In quotes where it has more than letters and digits.
            "--nflog-prefix" => prefix = words.next()?.trim_matches('"'),
            _ => return None,
        }
    }
    Some(Action::Log { group, prefix: Cow::Owned(prefix.to_owned()), limit: None })
}

fn parse_tproxy(words: &mut Words<'_>) -> Option<Action> {
    let (mut port, mut mark) = (None, None);
    while let Some(option) = words.next() {
        match option {
            "--on-port" => port = Some(words.number()?),
            "--tproxy-mark" => mark = Some(words.mark()?),
            // An address of its own is what the rule language cannot say; the unspecified one means none.
            "--on-ip" => words.number::<std::net::IpAddr>()?.is_unspecified().then_some(())?,
            _ => return None,
        }
    }
    Some(Action::Tproxy { port: port?, mark: mark? })
}

/// `ISTIO_OUTPUT` → `istio-output`, if that is a name that we would give.
pub(super) fn own_name(chain: &str) -> Option<String> {
    if let Some((long, _)) = SHORTENED.iter().find(|(_, short)| *short == chain) {
        return Some((*long).to_owned());
    }
    let name: String = chain.chars().map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() }).collect();
    (chain.starts_with("ISTIO_") && own_chain_name(&name) == chain).then_some(name)
}
