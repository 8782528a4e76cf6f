//! The verdicts of one state of a case, compared.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::state::{CaseConnection, CaseEntry, WrittenAs, without_brackets};
use super::{
    Allowed, CaseDifference, CaseError, CaseReport, CaseState, WrittenFlow, WrittenJudgement, WrittenRule,
};
use crate::{FlowVerdict, Judgement, PlainWorld, PolicyFlow, RuleRef, Traffic};

/// What the semantic verdict is compared with, state by state.
pub(super) struct CaseComparison<'a, J> {
    pub(super) judge: &'a J,
    pub(super) report: &'a mut CaseReport,
}

impl<J: Fn(&PlainWorld, &PolicyFlow) -> FlowVerdict> CaseComparison<'_, J> {
    pub(super) fn state(&mut self, state: &CaseState<'_>) -> Result<(), CaseError> {
        let mut entries = Vec::new();
        for table in &state.truth.tables {
            state.table(table, &mut entries)?;
        }
        self.report.cells += entries.len();
        self.report.flows += state.truth.flows.len();
        for flow in &state.truth.flows {
            state.flow(flow, &mut entries)?;
        }
        for entry in entries {
            match entry {
                CaseEntry::Connection(one) => self.connection(state, one),
                CaseEntry::Nothing(name, found, expected) if found != expected => {
                    self.report.differ(state, name, cell(expected), cell(found));
                }
                CaseEntry::Nothing(..) => {}
            }
        }
        Ok(())
    }

    fn connection(&mut self, state: &CaseState<'_>, one: CaseConnection<'_>) {
        let judge = |flow| (self.judge)(state.world, flow);
        match (one.written, &*one.flows) {
            (WrittenAs::Cell(expected), [flow]) => {
                let verdict = judge(flow);
                let found = if verdict.is_allowed() { '.' } else { 'X' };
                if found != expected {
                    let found = format!("{} ({verdict})", cell(found));
                    self.report.differ(state, one.name, cell(expected), found);
                }
            }
            (WrittenAs::Flow(written), [flow]) if one.service.is_none() => {
                self.single(state, written, &one.name, &judge(flow));
            }
            (WrittenAs::Flow(written), flows) => {
                let judged: Vec<(PolicyFlow, bool)> =
                    flows.iter().map(|flow| (*flow, judge(flow).is_allowed())).collect();
                self.service(state, written, one.name, &judged);
            }
            (WrittenAs::Cell(_), _) => {}
        }
    }

    /// A connection to one address.
    fn single(&mut self, state: &CaseState<'_>, flow: &WrittenFlow, name: &str, verdict: &FlowVerdict) {
        if flow.allowed != Allowed::Is(verdict.is_allowed()) {
            self.report.differ(state, name.to_owned(), said(&flow.allowed), verdict.to_string());
        }
        for (direction, expected, judgement) in
            [("egress", &flow.egress, &verdict.egress), ("ingress", &flow.ingress, &verdict.ingress)]
        {
            let found = written(judgement);
            if let Some(expected) = expected.as_ref().filter(|expected| **expected != found) {
                let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
                self.report.differ(state, format!("{name}, {direction}"), expected, found);
            }
        }
    }

    /// A connection by a Service: each endpoint that the service proxy may choose.
    fn service(
        &mut self,
        state: &CaseState<'_>,
        flow: &WrittenFlow,
        name: String,
        judged: &[(PolicyFlow, bool)],
    ) {
        let any = |wanted| judged.iter().any(|(_, allowed)| *allowed == wanted);
        let allowed = match (any(true), any(false)) {
            (false, _) => Allowed::Is(false),
            (true, false) => Allowed::Is(true),
            (true, true) => Allowed::Depends("mixed".to_owned()),
        };
        let expected: BTreeMap<String, bool> =
            flow.endpoints.iter().map(|(one, allowed)| (without_brackets(one), *allowed)).collect();
        let text = |flow: &PolicyFlow| {
            let port = if let Traffic::Port(_, port) = flow.traffic { port } else { 0 };
            without_brackets(&SocketAddr::new(flow.destination, port).to_string())
        };
        let texts: BTreeMap<String, bool> =
            judged.iter().map(|(flow, allowed)| (text(flow), *allowed)).collect();
        if flow.allowed != allowed || expected != texts {
            let found = format!("{} {texts:?}", said(&allowed));
            self.report.differ(state, name, format!("{} {expected:?}", said(&flow.allowed)), found);
        }
    }
}

// === impl CaseReport ===

impl CaseReport {
    pub(super) fn differ(
        &mut self,
        state: &CaseState<'_>,
        connection: String,
        expected: String,
        found: String,
    ) {
        let case = state.case.to_owned();
        let difference = CaseDifference { case, step: state.step, connection, expected, found };
        self.differences.push(difference);
    }
}

fn cell(cell: char) -> String {
    match cell {
        '.' => "allowed".to_owned(),
        'X' => "denied".to_owned(),
        '#' => "the pod itself".to_owned(),
        '-' => "no address of the family".to_owned(),
        other => format!("{other:?}"),
    }
}

fn said(allowed: &Allowed) -> String {
    match allowed {
        Allowed::Is(true) => "allowed".to_owned(),
        Allowed::Is(false) => "denied".to_owned(),
        Allowed::Depends(text) => text.clone(),
    }
}

/// A judgement as a file has it.
fn written(judgement: &Judgement) -> WrittenJudgement {
    let rule = |RuleRef { policy, rule, peer, port, .. }: &RuleRef| WrittenRule {
        policy: policy.to_string(),
        rule: *rule,
        peer: *peer,
        port: *port,
    };
    WrittenJudgement {
        verdict: if judgement.is_allowed() { "allow" } else { "deny" }.to_owned(),
        reason: judgement.ground.word().to_owned(),
        selecting: judgement.selecting.iter().map(ToString::to_string).collect(),
        by: judgement.ground.rules().iter().map(rule).collect(),
    }
}
