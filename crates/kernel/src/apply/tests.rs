//! Which backend is taken, and what is said where one does not work.

use std::sync::Mutex;

use ruleset::{Ruleset, listed};
use rustix::io::Errno;

use super::*;
use crate::{KeptSockets, Listing, iptables, netlink, nft};

/// What a backend answers to a setup.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Works,
    /// The kernel, or the machine, does not have it.
    Missing,
    /// It is there and fails.
    Fails,
}

/// A backend that answers so, and counts the setups.
struct Double(Backend, Answer, Mutex<usize>);

impl Double {
    fn error(&self) -> Error {
        let refused = |errno: Errno| netlink::Error::Refused { text: None, source: errno.into() };
        match (self.0, self.1) {
            (Backend::Nftables, Answer::Missing) => {
                nft::Error::of_question("ask".to_owned(), refused(Errno::INVAL)).into()
            }
            (Backend::Nftables, _) => nft::Error::of_question("ask".to_owned(), refused(Errno::NOMEM)).into(),
            (Backend::Iptables, Answer::Missing) => {
                let (program, searched) = ("iptables-restore".to_owned(), "/sbin".to_owned());
                iptables::Error::Missing { program, searched }.into()
            }
            (Backend::Iptables, _) => iptables::Error::Supervisor { cause: "no process".to_owned() }.into(),
        }
    }
}

impl RuleStore for Double {
    fn setup(&self, _: &Inside, _: &[Ruleset]) -> Result<Change, Error> {
        *self.2.lock().unwrap() += 1;
        if self.1 == Answer::Works { Ok(Change::Fresh) } else { Err(self.error()) }
    }

    fn put_first(&self, _: &Inside, _: &[Ruleset]) -> Result<Change, Error> {
        Err(self.error())
    }

    fn cleanup(&self, _: &Inside, _: &[Ruleset]) -> Result<Change, Error> {
        Ok(Change::None)
    }

    fn exists(&self, _: &Inside, _: &[Ruleset]) -> Result<bool, Error> {
        Ok(false)
    }

    fn observe(&self, _: &Inside, _: &[Ruleset]) -> Result<Vec<Difference>, Error> {
        Err(self.error())
    }

    fn exists_over(&self, _: &mut KeptSockets, _: &[Ruleset]) -> Result<Option<bool>, Error> {
        Ok(None)
    }

    fn observe_over(&self, _: &mut KeptSockets, _: &[Ruleset]) -> Result<Option<Vec<Difference>>, Error> {
        Ok(None)
    }

    fn recorded(&self, _: &[Ruleset]) -> Vec<u8> {
        Vec::new()
    }

    fn observe_recorded(
        &self,
        _: &Inside,
        _: &[Ruleset],
        _: &[u8],
    ) -> Result<Option<Vec<Difference>>, Error> {
        Ok(None)
    }

    fn tables(&self, _: &[Ruleset], _: &[u8]) -> Option<Vec<listed::ListedTable>> {
        None
    }

    fn others(&self, _: &Inside, _: &[Ruleset]) -> Result<Listing, Error> {
        Ok(Listing::default())
    }
}

fn plan(backend: Backend) -> Plan {
    let ruleset = Ruleset {
        owner: "istio-test".into(),
        known_chains: Vec::new().into(),
        ipv6: false,
        tables: Vec::new(),
    };
    Plan::of_layer(backend, ruleset)
}

#[test]
fn what_works_is_taken_and_every_reason_is_told() {
    use Answer::{Fails, Missing, Works};
    use Backend::{Iptables, Nftables};
    const NO_NFT: &str = "no nf_tables (CONFIG_NF_TABLES)";
    const NO_IPTABLES: &str = "cannot find iptables-restore in /sbin";
    let ns = testkit::TestNetns::new().unwrap();
    // The answers, the choice; the backend that holds the rules or the parts of the error; the setups that were tried.
    type Case = ((Answer, Answer), Choice, Result<Backend, &'static [&'static str]>, (usize, usize));
    let cases: [Case; 11] = [
        ((Works, Works), Choice::Auto, Ok(Nftables), (1, 0)),
        ((Works, Missing), Choice::Auto, Ok(Nftables), (1, 0)),
        ((Missing, Works), Choice::Auto, Ok(Iptables), (1, 1)),
        ((Missing, Missing), Choice::Auto, Err(&["neither", NO_NFT, NO_IPTABLES]), (1, 1)),
        ((Missing, Fails), Choice::Auto, Err(&["neither", NO_NFT, "no process"]), (1, 1)),
        ((Fails, Works), Choice::Auto, Err(&["out of memory"]), (1, 0)),
        ((Missing, Works), Choice::Only(Nftables), Err(&[NO_NFT]), (1, 0)),
        ((Missing, Missing), Choice::Only(Nftables), Err(&[NO_NFT]), (1, 0)),
        ((Works, Missing), Choice::Only(Iptables), Err(&[NO_IPTABLES]), (0, 1)),
        ((Works, Fails), Choice::Only(Iptables), Err(&["no process"]), (0, 1)),
        ((Missing, Works), Choice::Only(Iptables), Ok(Iptables), (0, 1)),
    ];
    for ((nft, iptables), choice, wanted, tried) in cases {
        let (nftables, iptables) =
            (Double(Nftables, nft, Mutex::default()), Double(Iptables, iptables, Mutex::default()));
        let kernel = Kernel { nftables: &nftables, iptables: &iptables };
        let result = ns.enter(|inside| kernel.apply(inside, choice, plan)).unwrap();
        let case = format!("{nft:?} {:?} {choice:?}", iptables.1);
        assert_eq!((*nftables.2.lock().unwrap(), *iptables.2.lock().unwrap()), tried, "{case}");
        match (result, wanted) {
            (Ok(applied), Ok(backend)) => {
                assert_eq!(applied.backend, backend, "{case}");
                let fell_back = choice == Choice::Auto && backend == Iptables;
                assert_eq!(applied.fallback.is_some(), fell_back, "{case}: {:?}", applied.fallback);
            }
            (Err(error), Err(parts)) => {
                let text = fault::chain(&error);
                assert!(parts.iter().all(|part| text.contains(part)), "{case}: {text}");
                // What the other one could do is the affair of those who know what was asked for.
                assert!(!text.contains("backend;") && !text.contains("use the"), "{case}: {text}");
                assert_eq!(error.is_neither(), parts[0] == "neither", "{case}");
                let of_one = matches!(choice, Choice::Only(_)) && !parts.contains(&"no process");
                assert_eq!(error.is_backend_missing(), of_one, "{case}: {text}");
            }
            (result, wanted) => panic!("{case}: {result:?} instead of {wanted:?}"),
        }
    }
}
