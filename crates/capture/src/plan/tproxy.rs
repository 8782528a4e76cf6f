//! What TPROXY needs besides the inbound rules that it shares with REDIRECT.

use ipnet::IpNet;
use ruleset::{ALL_BITS, Action, Backend, Match, Rule};

use super::draft::DraftChain;
use super::{Owner, Planner, in_interface, out_interface, source, tcp, to_own_address};
use crate::settings::TPROXY_OUTBOUND_MARK;

/// What meets a packet that the tproxy rule of its family did not take, because no transparent socket listens: nf_tables ends the rule
/// then and goes on with the next (`NFT_BREAK` in nft_tproxy.c), and without one the packet would come to the application, past the proxy.
/// iptables drops such a packet itself (`tproxy_tg4` in xt_TPROXY.c).
fn without_listener(loopback: IpNet) -> Rule {
    Rule::new(
        vec![tcp(), Match::Destination { net: loopback, not: true }],
        Action::Drop,
        "inbound, but the proxy does not listen",
    )
}

impl Planner<'_> {
    /// The chains that hand packets to the proxy's socket.
    pub(super) fn tproxy_targets(&mut self) {
        let mark = self.settings.tproxy_mark;
        let keep = Rule::new(vec![], Action::SetMark(mark), "marked packets are routed to this host");
        self.draft.add(DraftChain::MANGLE_DIVERT, keep);
        self.draft.add(
            DraftChain::MANGLE_DIVERT,
            Rule::new(vec![], Action::Accept, "marked: nothing else to decide"),
        );
        for own in self.per_family() {
            let rule = Rule::new(
                vec![tcp(), Match::Destination { net: own.loopback, not: true }],
                Action::Tproxy { port: self.settings.capture_port, mark },
                "inbound, to the proxy, addresses unchanged",
            );
            self.draft.add(DraftChain::MANGLE_TPROXY, rule);
            if self.facts.backend == Backend::Nftables {
                self.draft.add(DraftChain::MANGLE_TPROXY, without_listener(own.loopback));
            }
        }
    }

    /// Marks by which answers find back to the proxy.
    pub(super) fn answer_marks(&mut self) {
        if !self.tproxy() {
            return;
        }
        let mark = self.settings.tproxy_mark;
        let marked = || Match::Mark { mark, mask: ALL_BITS, not: false };
        let save = Rule::new(
            vec![tcp(), marked()],
            Action::SaveMark,
            "the connection remembers that it was captured",
        );
        self.draft.add(DraftChain::MANGLE_PREROUTING, save);
        let kept = Rule::new(
            vec![out_interface("lo"), tcp(), marked()],
            Action::Return,
            "already marked, on its way through loopback",
        );
        self.draft.add(DraftChain::MANGLE_OUTPUT, kept);
        let uids = self.settings.proxy_uids.iter().map(|&uid| Owner::Uid(uid));
        let gids = self.settings.proxy_gids.iter().map(|&gid| Owner::Gid(gid));
        for owner in uids.chain(gids) {
            for own in self.per_family() {
                let mut matches = to_own_address(own).to_vec();
                matches.push(owner.is());
                let rule = Rule::new(
                    matches,
                    Action::SetMark(TPROXY_OUTBOUND_MARK),
                    "the proxy calls its own pod: tell its packets from the pod's inner traffic",
                );
                self.draft.add(DraftChain::MANGLE_OUTPUT, rule);
            }
        }
        let restore = Rule::new(
            vec![tcp(), Match::CtMark { mark, mask: ALL_BITS, not: false }],
            Action::RestoreMark,
            "answers of a captured connection are routed like its requests",
        );
        self.draft.add(DraftChain::MANGLE_OUTPUT, restore);
    }

    /// What goes before everything else of the inbound chain.
    pub(super) fn tproxy_exceptions(&mut self) {
        if !self.tproxy() {
            return;
        }
        for rule in self.inbound_exceptions().into_iter().rev() {
            self.draft.insert_first(DraftChain::MANGLE_INBOUND, rule);
        }
    }

    /// What must not be captured a second time.
    fn inbound_exceptions(&self) -> Vec<Rule> {
        let mark = self.settings.tproxy_mark;
        let marked = Rule::new(
            vec![tcp(), Match::Mark { mark, mask: ALL_BITS, not: false }],
            Action::Return,
            "captured already, coming back through loopback",
        );
        let mut passthrough = self.per_family().map(|own| {
            Rule::new(
                vec![in_interface("lo"), tcp(), source(own.passthrough)],
                Action::Return,
                "the proxy's own connection to the application",
            )
        });
        let inner = Rule::new(
            vec![
                in_interface("lo"),
                tcp(),
                Match::Mark { mark: TPROXY_OUTBOUND_MARK, mask: ALL_BITS, not: true },
            ],
            Action::Return,
            "the pod's containers among themselves",
        );
        let (v4, v6) = (passthrough.next(), passthrough.next());
        // All of them return, so their order says nothing; this is the one that upstream's commands end in.
        let rules = match (self.facts.backend, self.facts.ipv6) {
            (Backend::Nftables, true) => [Some(marked), v6, Some(inner), v4],
            _ => [Some(marked), v4, v6, Some(inner)],
        };
        rules.into_iter().flatten().collect()
    }
}
