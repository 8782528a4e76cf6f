//! What became of tenants, as their status says it.

use std::collections::BTreeMap;

use enforcement::{ReachedService, TenantReport};
use facts::tenant::FaultReason;
use policy::tenancy::{ClaimState, NamespaceClaim};
use serde_json::{Value, json};

/// Names in a message. All of them are counted.
const MOST_NAMED: usize = 5;
/// Claims in a status: as many as its definition takes.
const MOST_CLAIMS: usize = 4096;

/// A condition of which the time of its last change is not known yet.
struct Condition {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

/// The status of a tenant; `before` is what it is, of which times of changes are kept, and `now` the time.
pub(super) fn status_of(report: &TenantReport, before: &Value, now: &str) -> Value {
    let claim = |NamespaceClaim { namespace, state }: &NamespaceClaim| match state.older() {
        None => json!({"name": namespace, "state": state.name()}),
        Some(owner) => json!({"name": namespace, "state": state.name(), "tenant": owner}),
    };
    let members = report.claims.iter().filter(|claim| claim.state == ClaimState::Member).count();
    let conditions = [accepted(report), namespaces(report), services(report), conflicted(report)];
    let conditions = conditions.iter().map(|condition| condition.written(report.generation, before, now));
    json!({
        "observedGeneration": report.generation,
        "conditions": conditions.collect::<Vec<_>>(),
        "namespaces": report.claims.iter().take(MOST_CLAIMS).map(claim).collect::<Vec<_>>(),
        "namespaceCount": members,
        "services": report.services.iter().map(service).collect::<Vec<_>>(),
        "pods": report.pods,
    })
}

/// The namespaces that older tenants have, by these tenants.
pub(super) fn refused(report: &TenantReport) -> BTreeMap<Box<str>, Box<str>> {
    let refused = report.claims.iter().filter_map(|claim| match &claim.state {
        ClaimState::Refused(owner) => Some((claim.namespace.clone(), owner.clone())),
        _ => None,
    });
    refused.collect()
}

fn service(service: &ReachedService) -> Value {
    let ReachedService { namespace, name, reach, addresses, endpoints } = service;
    // The definition has room for one of each family.
    let addresses: Vec<String> = addresses.iter().take(2).map(ToString::to_string).collect();
    let mut said =
        json!({"namespace": namespace, "name": name, "clusterIPs": addresses, "endpoints": endpoints});
    if let Some(reason) = reach.reason() {
        said["reason"] = reason.into();
    }
    said
}

fn accepted(report: &TenantReport) -> Condition {
    let faults = &report.faults;
    if faults.is_empty() {
        return Condition::new("Accepted", true, "Valid", "all of it is understood".to_owned());
    }
    let has = |is_it: fn(&FaultReason) -> bool| faults.first.iter().any(|fault| is_it(&fault.reason));
    let reason = if has(|reason| matches!(reason, FaultReason::TooLarge)) {
        "TooLarge"
    } else if has(|reason| matches!(reason, FaultReason::Range)) {
        "InvalidRange"
    } else {
        "Unsupported"
    };
    let first: Vec<String> = faults.first.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    let message = format!(
        "{} entries or fields are not understood; they allow nothing, and deny everything where they may deny something: {}",
        faults.count,
        first.join("; ")
    );
    Condition::new("Accepted", false, reason, message)
}

fn namespaces(report: &TenantReport) -> Condition {
    let missing = report.claims.iter().filter(|claim| claim.state == ClaimState::Missing);
    let missing: Vec<&str> = missing.map(|claim| &*claim.namespace).collect();
    let has_some = report.claims.iter().any(|claim| claim.state == ClaimState::Member);
    if missing.is_empty() && has_some {
        return Condition::new("NamespacesResolved", true, "Valid", "all namespaces are there".to_owned());
    }
    let message = match missing.is_empty() {
        true => "the tenant has no namespace".to_owned(),
        false => format!("namespaces that are not there: {}", named(&missing)),
    };
    Condition::new("NamespacesResolved", false, "NamespaceNotFound", message)
}

fn services(report: &TenantReport) -> Condition {
    let unresolved = |service: &ReachedService| {
        let reason = service.reach.reason()?;
        Some((reason, format!("{}/{} ({reason})", service.namespace, service.name)))
    };
    let unresolved: Vec<_> = report.services.iter().filter_map(unresolved).collect();
    let Some((reason, _)) = unresolved.first() else {
        let text = "all allowed Services are there, and their side agrees".to_owned();
        return Condition::new("ServicesResolved", true, "Valid", text);
    };
    let names: Vec<&str> = unresolved.iter().map(|(_, name)| &**name).collect();
    let message = format!("Services that are not reached: {}", named(&names));
    Condition::new("ServicesResolved", false, reason, message)
}

fn conflicted(report: &TenantReport) -> Condition {
    let refused = refused(report);
    if refused.is_empty() {
        let text = "no older tenant has one of its namespaces".to_owned();
        return Condition::new("Conflicted", false, "Valid", text);
    }
    let names: Vec<String> =
        refused.iter().map(|(namespace, owner)| format!("{namespace} (tenant {owner})")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let message = format!("namespaces that an older tenant has: {}", named(&names));
    Condition::new("Conflicted", true, "NamespaceConflict", message)
}

fn named(names: &[&str]) -> String {
    let more = names.len().saturating_sub(MOST_NAMED);
    let first = names[..names.len() - more].join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

// === impl Condition ===

impl Condition {
    fn new(kind: &'static str, holds: bool, reason: &'static str, message: String) -> Self {
        Self { kind, holds, reason, message }
    }

    fn written(&self, generation: u64, before: &Value, now: &str) -> Value {
        let Self { kind, holds, reason, message } = self;
        let status = if *holds { "True" } else { "False" };
        let known = before["conditions"].as_array().into_iter().flatten();
        let same = known.filter(|one| one["type"] == *kind && one["status"] == status);
        let since = same.filter_map(|one| one["lastTransitionTime"].as_str()).next().unwrap_or(now);
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since,
        })
    }
}

#[cfg(test)]
mod tests {
    use facts::tenant::{TenantEnforcement, TenantFaults};
    use policy::tenancy::ServiceReach;

    use super::*;

    fn report(claims: Vec<NamespaceClaim>, services: Vec<ReachedService>) -> TenantReport {
        TenantReport {
            name: "red".into(),
            generation: 3,
            in_force: Some(3),
            enforcement: TenantEnforcement::Enforce,
            claims: claims.into(),
            services,
            pods: 7,
            faults: TenantFaults::default(),
        }
    }

    fn condition<'v>(status: &'v Value, kind: &str) -> &'v Value {
        status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == kind).unwrap()
    }

    #[test]
    fn a_status_says_what_became_of_each_claim_and_service() {
        let claim = |namespace: &str, state| NamespaceClaim { namespace: namespace.into(), state };
        let claims = vec![
            claim("a", ClaimState::Member),
            claim("b", ClaimState::Refused("blue".into())),
            claim("c", ClaimState::Missing),
        ];
        let service = |name: &str, reach| ReachedService {
            namespace: "shared".into(),
            name: name.into(),
            reach,
            addresses: vec!["10.96.0.7".parse().unwrap()],
            endpoints: 2,
        };
        let services = vec![service("x", ServiceReach::Reached), service("y", ServiceReach::NoConsent)];
        let status = status_of(&report(claims, services), &Value::Null, "first");
        assert_eq!((&status["observedGeneration"], &status["namespaceCount"]), (&json!(3), &json!(1)));
        assert_eq!(status["pods"], 7);
        assert_eq!(status["namespaces"][1], json!({"name": "b", "state": "Refused", "tenant": "blue"}));
        assert_eq!(status["services"][1]["reason"], "NoConsent");
        let said = |kind| {
            let one = condition(&status, kind);
            (one["status"].as_str().unwrap().to_owned(), one["reason"].as_str().unwrap().to_owned())
        };
        let pair = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
        assert_eq!(said("Accepted"), pair("True", "Valid"));
        assert_eq!(said("NamespacesResolved"), pair("False", "NamespaceNotFound"));
        assert_eq!(said("ServicesResolved"), pair("False", "NoConsent"));
        assert_eq!(said("Conflicted"), pair("True", "NamespaceConflict"));
    }

    #[test]
    fn the_time_of_a_change_stays_until_the_next_one() {
        let claim = |state| vec![NamespaceClaim { namespace: "a".into(), state }];
        let first = status_of(&report(claim(ClaimState::Member), Vec::new()), &Value::Null, "first");
        let same = status_of(&report(claim(ClaimState::Member), Vec::new()), &first, "second");
        assert_eq!(first, same);
        let later = status_of(&report(claim(ClaimState::Missing), Vec::new()), &same, "third");
        assert_eq!(condition(&later, "NamespacesResolved")["lastTransitionTime"], "third");
        assert_eq!(condition(&later, "Accepted")["lastTransitionTime"], "first");
    }
}
