//! The rules that a policy comes to in a pod's own network namespace.

use facts::NetworkPolicy;
use policy::compile::{PodPoint, compile_pod};
use policy::index::{LocalFacts, LocalName, PolicyIndex, TunnelJudge};
use policy::{PlainWorld, PolicyTerms};
use ruleset::{Backend, Ruleset};
use serde_json::{Value, json};
use testkit::Pod;

/// Of a policy with this specification, which selects the pod.
pub(crate) fn own_rules(pod: &Pod, spec: &Value, point: &PodPoint<'_>, backend: Backend) -> Ruleset {
    let object = json!({"metadata": {"namespace": "x", "name": "n"}, "spec": spec});
    let terms = PolicyTerms::from(&serde_json::from_value::<NetworkPolicy>(object).unwrap());
    let (world, mut index) = (PlainWorld::default(), PolicyIndex::default());
    index.policy(&world, &terms.name.clone(), Some(terms));
    let name = LocalName { namespace: "x".into(), name: "p".into() };
    let facts = LocalFacts {
        labels: facts::LabelSet::default(),
        addresses: pod.ips().into(),
        tunnel: TunnelJudge::Port,
    };
    index.local_pod(&world, &name, Some(facts));
    compile_pod(&index, index.classes_of(&name).unwrap(), point, backend).rules
}
