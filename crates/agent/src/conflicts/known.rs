//! What is known of a namespace's conflicts from one look to the next.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use ::conflicts::{Conflict, Examined, Severity};
use facts::PodRef;
use kernel::watch::Fingerprint;
use ruleset::Family;

use super::limits::AttemptLimit;

/// The node's namespace is looked at so often, and so often at most where somebody changes its rules.
const NODE_EVERY: Duration = Duration::from_secs(600);
const NODE_AT_MOST_EVERY: Duration = Duration::from_secs(30);
/// A look that came so late after the first one counts for as long as nothing changes: by then the pod's processes are there.
const SETTLED: Duration = Duration::from_secs(60);
/// A look that was under way sees a rule before the kernel's word of who wrote it is heard.
const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// Conflicts of a namespace that are kept, and as many that are gone.
const MOST: usize = 64;

/// What is known of a namespace.
#[derive(Debug, Default)]
pub(super) struct NetnsConflicts {
    /// Whose it is; absent: the node's.
    pub(super) pod: Option<PodRef>,
    /// When it was first looked at, and last.
    first: Option<Instant>,
    last: Option<Instant>,
    /// The rules that the last look began with, where it came to something.
    rules: Option<Fingerprint>,
    pub(super) routing_changed: bool,
    /// On the node: families of pods whose probes were looked at; without a pod there is no probe to look at.
    probed: Vec<Family>,
    pub(super) findings: Vec<KnownConflict>,
    pub(super) not_looked_at: Vec<String>,
    /// The same, where no later look will show it.
    pub(super) out_of_sight: Vec<String>,
    pub(super) limits: AttemptLimit,
    /// The same of settings.
    pub(super) setting_limits: AttemptLimit,
    /// The tables of legacy iptables that were there before rules of ours, as far as that is known: the kernel does not tell their age.
    pub(super) older: Option<Vec<String>>,
}

/// A conflict, and when it was there.
#[derive(Debug, Clone)]
pub(super) struct KnownConflict {
    pub(super) conflict: Conflict,
    pub(super) first_seen: SystemTime,
    pub(super) last_seen: SystemTime,
    pub(super) gone: bool,
    /// What was done about it.
    pub(super) resolved: Option<&'static str>,
}

/// What a look came to.
#[derive(Debug, Default)]
pub(super) struct ConflictsFound {
    pub(super) examined: Examined,
    /// The rules before they were read; absent where the kernel did not tell.
    pub(super) rules: Option<Fingerprint>,
    pub(super) resolved: Option<Resolved>,
}

/// What was done about conflicts, before what was found then.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) what: &'static str,
    pub(super) before: Vec<Conflict>,
}

/// What a look changes of what is known.
#[derive(Debug, Default)]
pub(super) struct ConflictNews {
    pub(super) found: Vec<Conflict>,
    /// What is gone after something was done about it.
    pub(super) resolved: Vec<Conflict>,
}

impl NetnsConflicts {
    /// Whether nothing can have changed since the last look that came to something. Where it may have, a look begins now.
    pub(super) fn is_unchanged(
        &mut self,
        pod: Option<&PodRef>,
        rules: Option<&Fingerprint>,
        probed: &[IpAddr],
        now: Instant,
    ) -> bool {
        if self.pod.as_ref() != pod {
            *self = Self { pod: pod.cloned(), ..Self::default() };
        }
        let first = *self.first.get_or_insert(now);
        let same = rules.is_some() && rules == self.rules.as_ref() && !self.routing_changed;
        let families = [Family::V4, Family::V6].into_iter();
        let new = families.filter(|family| {
            !self.probed.contains(family) && probed.iter().any(|ip| Family::of_address(*ip) == *family)
        });
        let new: Vec<Family> = new.collect();
        let unchanged = new.is_empty()
            && self.last.is_some_and(|last| match pod {
                Some(_) => same && last.duration_since(first) >= SETTLED,
                None if same => now.duration_since(last) < NODE_EVERY,
                None => now.duration_since(last) < NODE_AT_MOST_EVERY,
            });
        if !unchanged {
            (self.last, self.routing_changed) = (Some(now), false);
            self.probed.extend(new);
        }
        unchanged
    }

    /// Takes what a look came to. What is new in nf_tables is of whoever wrote there last.
    pub(super) fn take(
        &mut self,
        looked: ConflictsFound,
        writer: Option<&str>,
        now: SystemTime,
    ) -> ConflictNews {
        let ConflictsFound {
            examined: Examined { conflicts: mut found, mut not_looked_at, out_of_sight },
            rules,
            resolved,
        } = looked;
        if found.len() > MOST {
            found.truncate(MOST);
            not_looked_at.push(format!("more than the first {MOST} conflicts"));
        }
        (self.rules, self.not_looked_at, self.out_of_sight) = (rules, not_looked_at, out_of_sight);
        let is_there = |conflict: &Conflict| found.iter().any(|there| is_same(there, conflict));
        for finding in &mut self.findings {
            finding.gone = !is_there(&finding.conflict);
        }
        let (what, before) = resolved.map_or((None, Vec::new()), |of| (Some(of.what), of.before));
        let culprit = |conflict: &Conflict| writer.filter(|_| is_of_nftables(conflict)).map(str::to_owned);
        let mut news = ConflictNews::default();
        for conflict in before.iter().chain(&found) {
            if let Some(known) = self.findings.iter_mut().find(|known| is_same(&known.conflict, conflict)) {
                known.last_seen = now;
                let is_new = now.duration_since(known.first_seen).is_ok_and(|age| age < HEARD_WITHIN);
                if known.conflict.culprit.is_none() && is_new {
                    known.conflict.culprit = culprit(conflict);
                }
                continue;
            }
            let gone = !is_there(conflict);
            let conflict = Conflict { culprit: culprit(conflict), ..conflict.clone() };
            news.found.push(conflict.clone());
            self.findings.push(KnownConflict {
                conflict,
                first_seen: now,
                last_seen: now,
                gone,
                resolved: None,
            });
        }
        for finding in self.findings.iter_mut().filter(|finding| finding.gone && what.is_some()) {
            if before.iter().any(|conflict| is_same(conflict, &finding.conflict)) {
                finding.resolved = what;
                news.resolved.push(finding.conflict.clone());
            }
        }
        self.forget_the_oldest();
        news
    }

    /// A look came to nothing: what was known stays, and it is looked again. Whether that is new.
    pub(super) fn failed(&mut self, text: String) -> bool {
        self.rules = None;
        let text = vec![text];
        std::mem::replace(&mut self.not_looked_at, text.clone()) != text
    }

    /// Conflicts that let packets past rules of ours, or break traffic.
    pub(super) fn errors(&self) -> usize {
        self.there_and_bad().count()
    }

    fn there_and_bad(&self) -> impl Iterator<Item = &Conflict> {
        let there = self.findings.iter().filter(|finding| !finding.gone).map(|finding| &finding.conflict);
        there.filter(|conflict| conflict.severity == Severity::Error)
    }

    /// The first conflict that is there and bad.
    pub(super) fn worst(&self) -> Option<&Conflict> {
        self.there_and_bad().next()
    }

    /// What is gone makes room.
    fn forget_the_oldest(&mut self) {
        while self.findings.len() > 2 * MOST {
            let gone = self.findings.iter().position(|finding| finding.gone);
            self.findings.remove(gone.unwrap_or(0));
        }
    }
}

/// Whether it is a rule that came by a transaction of nf_tables.
fn is_of_nftables(conflict: &Conflict) -> bool {
    let table = &conflict.place.table;
    !table.is_empty() && !table.ends_with("(legacy)")
}

/// Whether both are the same thing at two times.
fn is_same(one: &Conflict, other: &Conflict) -> bool {
    (one.id, &one.place, &one.foreign) == (other.id, &other.place, &other.foreign)
}

#[cfg(test)]
mod tests {
    use ::conflicts::{ConflictId, ConflictPlace, Resolution};

    use super::*;

    fn conflict(foreign: &str) -> Conflict {
        Conflict {
            id: ConflictId::P1,
            severity: Severity::Error,
            place: ConflictPlace::default(),
            foreign: foreign.to_owned(),
            affects: String::new(),
            culprit: None,
            resolution: Resolution::Reregister,
            advice: String::new(),
        }
    }

    fn looked(conflicts: Vec<Conflict>) -> ConflictsFound {
        ConflictsFound {
            examined: Examined { conflicts, ..Examined::default() },
            ..ConflictsFound::default()
        }
    }

    #[test]
    fn only_what_is_gone_at_the_second_look_is_resolved() {
        let (mut namespace, now) = (NetnsConflicts::default(), SystemTime::now());
        let resolved = Resolved { what: "moved", before: vec![conflict("one"), conflict("two")] };
        let news = namespace.take(
            ConflictsFound { resolved: Some(resolved), ..looked(vec![conflict("two")]) },
            None,
            now,
        );
        assert_eq!((news.found.len(), &news.resolved), (2, &vec![conflict("one")]));
        assert_eq!(namespace.errors(), 1);
        let of = |foreign: &str| namespace.findings.iter().find(|known| known.conflict.foreign == foreign);
        assert_eq!(of("one").map(|one| (one.gone, one.resolved)), Some((true, Some("moved"))));
        assert_eq!(of("two").map(|two| (two.gone, two.resolved)), Some((false, None)));
    }

    /// Nor is it where a full comparison comes, hours later.
    #[test]
    fn a_pod_that_has_not_changed_since_it_has_settled_is_not_read_again() {
        let pod = PodRef { namespace: "shop".to_owned(), name: "web".to_owned(), uid: "u".to_owned() };
        let (mut namespace, begin, rules) =
            (NetnsConflicts::default(), Instant::now(), Fingerprint::default());
        let reads = |namespace: &mut NetnsConflicts, after: Duration| {
            let unchanged = namespace.is_unchanged(Some(&pod), Some(&rules), &[], begin + after);
            if !unchanged {
                let found = ConflictsFound { rules: Some(rules.clone()), ..looked(Vec::new()) };
                namespace.take(found, None, SystemTime::now());
            }
            !unchanged
        };
        assert!(reads(&mut namespace, Duration::ZERO) && reads(&mut namespace, SETTLED));
        assert!(!reads(&mut namespace, 2 * SETTLED) && !reads(&mut namespace, 1000 * SETTLED));
        namespace.routing_changed = true;
        assert!(reads(&mut namespace, 1001 * SETTLED) && !reads(&mut namespace, 1002 * SETTLED));
        assert!(!namespace.is_unchanged(Some(&pod), None, &[], begin + 1003 * SETTLED));
    }

    #[test]
    fn whoever_wrote_it_is_named_also_where_that_is_heard_after_the_look() {
        let (mut namespace, now) = (NetnsConflicts::default(), SystemTime::now());
        let rule = |table: &str| {
            let place = ConflictPlace { table: table.to_owned(), ..ConflictPlace::default() };
            Conflict { place, ..conflict("rule") }
        };
        let all = || looked(["nat", "nat (legacy)", ""].map(rule).to_vec());
        namespace.take(all(), None, now);
        namespace.take(all(), Some("nft (pid 7)"), now + Duration::from_secs(1));
        namespace.take(all(), Some("nft (pid 8)"), now + Duration::from_secs(2));
        let culprits: Vec<Option<&str>> =
            namespace.findings.iter().map(|known| known.conflict.culprit.as_deref()).collect();
        assert_eq!(culprits, [Some("nft (pid 7)"), None, None]);
        let late = looked(vec![rule("filter")]);
        namespace.take(late, None, now);
        namespace.take(looked(vec![rule("filter")]), Some("nft (pid 9)"), now + HEARD_WITHIN);
        assert_eq!(namespace.findings.last().and_then(|known| known.conflict.culprit.clone()), None);
    }

    #[test]
    fn the_node_is_looked_at_anew_when_the_first_pod_of_a_family_is_probed() {
        let (mut node, now) = (NetnsConflicts::default(), Instant::now());
        let rules = Fingerprint::default();
        let (v4, v6): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 1].into());
        assert!(!node.is_unchanged(None, Some(&rules), &[], now));
        assert!(node.is_unchanged(None, None, &[], now), "not so soon, whatever has changed");
        assert!(!node.is_unchanged(None, None, &[v4], now));
        assert!(node.is_unchanged(None, None, &[v4, v4], now));
        assert!(!node.is_unchanged(None, None, &[v4, v6], now));
        assert!(node.is_unchanged(None, None, &[v6], now));
        assert!(!node.is_unchanged(None, None, &[v6], now + NODE_AT_MOST_EVERY));
    }

    #[test]
    fn a_look_that_failed_leaves_what_was_known_and_is_done_again() {
        let (mut namespace, start) = (NetnsConflicts::default(), Instant::now());
        let pod = PodRef::named("shop", "web");
        let rules = Fingerprint::default();
        let late = start + SETTLED;
        assert!(!namespace.is_unchanged(Some(&pod), Some(&rules), &[], start));
        assert!(!namespace.is_unchanged(Some(&pod), Some(&rules), &[], late));
        let found = ConflictsFound { rules: Some(rules.clone()), ..looked(vec![conflict("one")]) };
        namespace.take(found, None, SystemTime::now());
        assert!(namespace.is_unchanged(Some(&pod), Some(&rules), &[], late));
        assert!(!namespace.is_unchanged(Some(&pod), None, &[], late), "who cannot tell looks");
        assert!(namespace.failed("no answer".to_owned()) && !namespace.failed("no answer".to_owned()));
        assert_eq!((namespace.errors(), &*namespace.not_looked_at), (1, &["no answer".to_owned()][..]));
        assert!(!namespace.is_unchanged(Some(&pod), Some(&rules), &[], late));
        // Another pod may get the number of a namespace that is gone.
        let other = PodRef { uid: "2".into(), ..pod };
        assert!(!namespace.is_unchanged(Some(&other), Some(&rules), &[], late));
        assert_eq!(namespace.errors(), 0);
    }
}
