use facts::{LabelSet, Peer};
use policy::index::{LocalFacts, TunnelJudge};
use policy::{PlainPod, PlainWorld, PolicyTerms, ServiceVerdicts};
use serde_json::json;

use super::*;

struct Setup {
    world: PlainWorld,
    index: PolicyIndex,
    book: PodBook,
}

fn name(of: &str) -> LocalName {
    LocalName { namespace: "x".into(), name: of.into() }
}

impl Setup {
    /// Pods `a`, which a policy opens to pods with the label `in`, and `b`.
    fn new() -> Self {
        let (world, index) = (PlainWorld::default(), PolicyIndex::default());
        let mut setup = Self { world, index, book: PodBook::new(Backend::Nftables, Vec::new()) };
        setup.policy(Some(json!([{"from": [{"podSelector": {"matchLabels": {"in": "yes"}}}]}])));
        setup.pod("a", "10.0.0.1", &[("app", "a")], true);
        setup.pod("b", "10.0.0.2", &[], false);
        let touched = setup.book.adopt(&setup.index, Vec::new(), &|_| PointCharge::Its);
        assert_eq!(touched, [name("a")]);
        setup
    }

    fn policy(&mut self, ingress: Option<serde_json::Value>) -> BTreeSet<LocalName> {
        let object = json!({"metadata": {"namespace": "x", "name": "p"},
            "spec": {"podSelector": {"matchLabels": {"app": "a"}}, "ingress": ingress.clone().unwrap_or_default()}});
        let terms = PolicyTerms::from(&serde_json::from_value::<facts::NetworkPolicy>(object).unwrap());
        let effects = self.index.policy(&self.world, &terms.name.clone(), ingress.map(|_| terms));
        self.book.apply(&effects, &self.index, &|_| PointCharge::Its)
    }

    /// Also isolates the pod's egress, but for other pods of the namespace.
    fn isolate_egress(&mut self) {
        let object = json!({"metadata": {"namespace": "x", "name": "e"}, "spec": {"podSelector": {"matchLabels": {"app": "a"}},
            "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]}});
        let terms = PolicyTerms::from(&serde_json::from_value::<facts::NetworkPolicy>(object).unwrap());
        let effects = self.index.policy(&self.world, &terms.name.clone(), Some(terms));
        self.book.apply(&effects, &self.index, &|_| PointCharge::Its);
    }

    /// The lists of Services are complete: these addresses are allowed. Nothing: they are not any more.
    fn services(&mut self, allowed: Option<&[&str]>) -> BTreeSet<LocalName> {
        let class = self.index.classes_of(&name("a")).and_then(|classes| classes.egress.clone()).unwrap();
        let member = |address: &&str| PeerMember { address: address.parse().unwrap(), port: None };
        let verdicts = allowed.map(|allowed| ServiceVerdicts {
            allowed: allowed.iter().map(member).collect(),
            ..ServiceVerdicts::default()
        });
        let services = verdicts.into_iter().map(|verdicts| (class.clone(), Arc::new(verdicts))).collect();
        self.book.set_services(&services, &self.index)
    }

    fn pod(
        &mut self,
        of: &str,
        address: &str,
        labels: &[(&str, &str)],
        is_local: bool,
    ) -> BTreeSet<LocalName> {
        let address: IpAddr = address.parse().unwrap();
        let labels: LabelSet = labels.iter().copied().collect();
        let facts = Peer { labels: labels.clone(), addresses: [address].into(), ..Peer::default() };
        self.world.put_pod(PlainPod { namespace: "x".into(), name: of.into(), is_enrolled: false, facts });
        let local = LocalFacts { labels, addresses: [address].into(), tunnel: TunnelJudge::Port };
        let mut effects = match is_local {
            true => self.index.local_pod(&self.world, &name(of), Some(local)),
            false => Vec::new(),
        };
        effects.extend(self.index.pod(&self.world, &[address]));
        self.book.apply(&effects, &self.index, &|_| PointCharge::Its)
    }

    /// The next job of `a`, as its sets are told: whole ones by their length, changes by what comes and goes.
    fn job(&mut self) -> (PodJob, Vec<String>) {
        let job = self.book.job(&name("a")).unwrap();
        let told = |set: &SetJob| match &set.content {
            SetContent::Whole(all) => format!("{}", all.len()),
            SetContent::Changes(delta) => format!("+{}-{}", delta.added().len(), delta.removed().len()),
        };
        let sets = job.sets.iter().filter(|set| set.name.ends_with("v4")).map(told).collect();
        (job, sets)
    }
}

#[test]
fn a_pod_gets_its_rules_then_what_changes_of_their_sets_and_then_none() {
    let mut setup = Setup::new();
    let (job, sets) = setup.job();
    assert!(job.is_whole && job.before.is_none() && job.rules.is_some());
    assert_eq!(sets, ["0"]);
    // It comes while the job is under way, and is the next one's.
    assert_eq!(setup.pod("b", "10.0.0.2", &[("in", "yes")], false), [name("a")].into());
    setup.book.done(&name("a"), &job);
    let (next, sets) = setup.job();
    assert_eq!((next.is_whole, sets), (false, vec!["+1-0".to_owned()]));
    // It fails: everything is compared, and written.
    let (again, sets) = setup.job();
    assert_eq!((again.is_whole, sets), (true, vec!["1".to_owned()]));
    setup.book.done(&name("a"), &again);
    setup.policy(Some(json!([{"from": [{"podSelector": {}}]}])));
    let (other, sets) = setup.job();
    assert!(other.before.is_some() && other.before != other.rules);
    assert_eq!(sets, ["2"], "a new set is written as a whole");
    setup.book.done(&name("a"), &other);
    assert_eq!(setup.policy(None), [name("a")].into());
    let (none, _) = setup.job();
    assert!(none.rules.is_none() && none.before.is_some());
    setup.book.done(&name("a"), &none);
    assert!(setup.book.job(&name("a")).is_none() && setup.book.inside().next().is_none());
}

#[test]
fn members_are_kept_for_rules_that_look_into_them_and_no_longer() {
    let mut setup = Setup::new();
    setup.pod("b", "10.0.0.2", &[("in", "yes")], false);
    assert_eq!(setup.book.sets.len(), 1);
    // All of it is the node's.
    setup.book.adopt(&setup.index, Vec::new(), &|_| PointCharge::Others);
    assert_eq!(setup.book.sets.len(), 0);
    setup.pod("c", "10.0.0.3", &[("in", "yes")], false);
    setup.policy(Some(json!([{"from": [{"podSelector": {}}]}])));
    assert_eq!(setup.book.sets.len(), 0);
    // What came and went meanwhile is known when a pod needs it.
    setup.pod("b", "10.0.0.2", &[], false);
    setup.book.settle(&name("a"), true, &setup.index);
    let (job, sets) = setup.job();
    assert!(job.is_whole && setup.book.sets.len() == 1);
    assert_eq!(sets, ["3"]);
    setup.book.done(&name("a"), &job);
    // Other rules look into another set, and the one before is let go.
    setup.policy(Some(json!([{"from": [{"podSelector": {"matchLabels": {"in": "yes"}}}]}])));
    let (_, sets) = setup.job();
    assert!(setup.book.sets.len() == 1 && sets == ["1"], "{sets:?}");
    let effects = setup.index.local_pod(&setup.world, &name("a"), None);
    setup.book.apply(&effects, &setup.index, &|_| PointCharge::Its);
    assert_eq!(setup.book.sets.len(), 0);
}

#[test]
fn a_set_that_rules_look_into_anew_is_written_as_a_whole_whatever_was_kept_of_it() {
    let mut setup = Setup::new();
    let labelled = || Some(json!([{"from": [{"podSelector": {"matchLabels": {"in": "yes"}}}]}]));
    let (job, _) = setup.job();
    setup.book.done(&name("a"), &job);
    // The rules look elsewhere for a moment, too short for a job, and the set changes meanwhile.
    setup.policy(Some(json!([{"from": [{"podSelector": {}}]}])));
    setup.pod("b", "10.0.0.2", &[("in", "yes")], false);
    setup.policy(labelled());
    let (job, sets) = setup.job();
    assert!(!job.is_whole && job.before.is_some() && !job.is_repeat);
    assert_eq!(sets, ["1"]);
    setup.book.done(&name("a"), &job);
    // From then on it is what changes.
    setup.pod("c", "10.0.0.3", &[("in", "yes")], false);
    let (job, sets) = setup.job();
    assert_eq!(sets, ["+1-0"]);
    setup.book.done(&name("a"), &job);
    // Gone and there again in one event, with others in it.
    let set = job.rules.iter().flat_map(|rules| &rules.kept).map(|(.., set)| set.clone()).next().unwrap();
    let anew = [PolicyEffect::SetAppears(set, Vec::new())];
    assert_eq!(setup.book.apply(&anew, &setup.index, &|_| PointCharge::Its), [name("a")].into());
    let (job, sets) = setup.job();
    assert_eq!((job.is_whole, sets), (false, vec!["2".to_owned()]));
}

#[test]
fn rules_wait_for_lists_of_services_until_everything_is_compared_again_and_no_longer() {
    let mut setup = Setup::new();
    setup.isolate_egress();
    assert!(setup.book.job(&name("a")).is_none() && setup.book.waits(&name("a")));
    // What is compared because somebody has changed something ends no patience.
    assert!(setup.book.disturbed(&name("a")) && setup.book.job(&name("a")).is_none());
    assert_eq!(setup.book.look_at_all(), [name("a")]);
    let (job, _) = setup.job();
    assert!(job.lacks_services && job.rules.as_ref().is_some_and(|rules| rules.services.is_empty()));
    setup.book.done(&name("a"), &job);
    assert!(!setup.book.waits(&name("a")));
    // They come after all.
    let services = |job: &PodJob| -> Vec<String> {
        let of_services = |set: &&SetJob| set.name.ends_with("-s4");
        let told = |set: &SetJob| match &set.content {
            SetContent::Whole(all) => format!("{}", all.len()),
            SetContent::Changes(delta) => format!("+{}-{}", delta.added().len(), delta.removed().len()),
        };
        job.sets.iter().filter(of_services).map(told).collect()
    };
    assert_eq!(setup.services(Some(&["10.96.0.1"])), [name("a")].into());
    let (job, _) = setup.job();
    assert_eq!((job.lacks_services, services(&job)), (false, vec!["1".to_owned()]));
    setup.book.done(&name("a"), &job);
    setup.services(Some(&["10.96.0.1", "10.96.0.2"]));
    let (job, _) = setup.job();
    assert_eq!(services(&job), ["+1-0"]);
    setup.book.done(&name("a"), &job);
    // They are not known for a moment, and are others then. It has the patience of before.
    setup.services(None);
    assert!(setup.book.job(&name("a")).is_none());
    setup.services(Some(&["10.96.0.7"]));
    let (job, _) = setup.job();
    assert_eq!((job.is_whole, services(&job)), (false, vec!["1".to_owned()]));
    // What an adoption compares is the start of it all, and ends no patience.
    setup.services(None);
    assert!(setup.book.job(&name("a")).is_none());
    setup.book.adopt(&setup.index, Vec::new(), &|_| PointCharge::Its);
    assert!(setup.book.job(&name("a")).is_none());
}

#[test]
fn a_job_of_a_pod_that_has_gone_says_nothing_about_the_next_one_of_its_name() {
    let mut setup = Setup::new();
    let (job, _) = setup.job();
    assert!(setup.book.is_of(&name("a"), &job));
    let effects = setup.index.local_pod(&setup.world, &name("a"), None);
    setup.book.apply(&effects, &setup.index, &|_| PointCharge::Its);
    assert!(!setup.book.is_of(&name("a"), &job) && !setup.book.done(&name("a"), &job));
    setup.pod("a", "10.0.0.9", &[("app", "a")], true);
    assert!(!setup.book.is_of(&name("a"), &job));
    let (next, _) = setup.job();
    assert!(!setup.book.done(&name("a"), &job) && setup.book.waits(&name("a")));
    assert!(setup.book.is_of(&name("a"), &next) && setup.book.done(&name("a"), &next));
    assert!(!setup.book.waits(&name("a")));
}
