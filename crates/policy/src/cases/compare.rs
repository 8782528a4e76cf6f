//! The verdicts of one state of a case, compared.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::ends::{self, Destination};
use super::{
    Allowed, CaseDifference, CaseError, CaseReport, Table, Truth, WrittenFlow, WrittenJudgement, WrittenRule,
};
use crate::{FlowRoute, FlowVerdict, Ground, Judgement, PlainWorld, PolicyFlow, RuleRef, Traffic};

/// A case after some of its steps.
pub(super) struct CaseState<'a, J> {
    pub(super) case: &'a str,
    pub(super) step: usize,
    pub(super) world: &'a PlainWorld,
    pub(super) judge: &'a J,
    pub(super) report: &'a mut CaseReport,
}

impl<J: Fn(&PlainWorld, &PolicyFlow) -> FlowVerdict> CaseState<'_, J> {
    pub(super) fn compare(&mut self, truth: &Truth) -> Result<(), CaseError> {
        truth.tables.iter().try_for_each(|table| self.table(table))?;
        truth.flows.iter().try_for_each(|flow| self.flow(flow))
    }

    fn table(&mut self, table: &Table) -> Result<(), CaseError> {
        let (traffic, route) = (table.traffic.traffic()?, table.traffic.route()?);
        let v6 = table.traffic.is_v6()?.unwrap_or_default();
        let addresses: Vec<Option<IpAddr>> =
            table.pods.iter().map(|pod| ends::pod_address(self.world, pod, v6)).collect::<Result<_, _>>()?;
        let pods = table.pods.len();
        if table.rows.len() != pods || table.rows.iter().any(|row| row.chars().count() != pods) {
            return Err(CaseError::Shape { pods });
        }
        for (from, row) in table.rows.iter().enumerate() {
            for (to, expected) in row.chars().enumerate() {
                self.report.cells += 1;
                let (found, why) = match (addresses[from], addresses[to]) {
                    _ if from == to => ('#', String::new()),
                    (Some(source), Some(destination)) => {
                        let verdict =
                            (self.judge)(self.world, &PolicyFlow { source, destination, traffic, route });
                        (if verdict.is_allowed() { '.' } else { 'X' }, verdict.to_string())
                    }
                    _ => ('-', String::new()),
                };
                if found != expected {
                    let connection = connection(&table.pods[from], &table.pods[to], traffic, route);
                    self.differ(connection, cell(expected), format!("{} ({why})", cell(found)));
                }
            }
        }
        Ok(())
    }

    fn flow(&mut self, flow: &WrittenFlow) -> Result<(), CaseError> {
        self.report.flows += 1;
        let (traffic, route) = (flow.traffic.traffic()?, flow.traffic.route()?);
        let written = ends::family_of(&flow.src).or_else(|| ends::family_of(&flow.dst));
        let v6 = flow.traffic.is_v6()?.or(written).unwrap_or_default();
        let source = ends::address(self.world, &flow.src, v6)?;
        let name = connection(&flow.src, &flow.dst, traffic, route);
        match ends::destination(self.world, &flow.dst, v6, traffic)? {
            Destination::Address(destination) => {
                let verdict = (self.judge)(self.world, &PolicyFlow { source, destination, traffic, route });
                self.single(flow, &name, &verdict);
            }
            Destination::Endpoints(endpoints) => self.service(flow, name, source, traffic, &endpoints),
        }
        Ok(())
    }

    /// A connection to one address.
    fn single(&mut self, flow: &WrittenFlow, name: &str, verdict: &FlowVerdict) {
        if flow.allowed != Allowed::Is(verdict.is_allowed()) {
            self.differ(name.to_owned(), said(&flow.allowed), verdict.to_string());
        }
        for (direction, expected, judgement) in
            [("egress", &flow.egress, &verdict.egress), ("ingress", &flow.ingress, &verdict.ingress)]
        {
            let found = written(judgement);
            if let Some(expected) = expected.as_ref().filter(|expected| **expected != found) {
                self.differ(format!("{name}, {direction}"), format!("{expected:?}"), format!("{found:?}"));
            }
        }
    }

    /// A connection by a Service: each endpoint that the service proxy may choose.
    fn service(
        &mut self,
        flow: &WrittenFlow,
        name: String,
        source: IpAddr,
        traffic: Traffic,
        endpoints: &[(IpAddr, u16)],
    ) {
        let judged = endpoints.iter().map(|&(destination, port)| {
            let traffic = match traffic {
                Traffic::Port(protocol, _) => Traffic::Port(protocol, port),
                Traffic::Portless => traffic,
            };
            let flow = PolicyFlow { source, destination, traffic, route: FlowRoute::Service };
            (SocketAddr::new(destination, port), (self.judge)(self.world, &flow).is_allowed())
        });
        let found: BTreeMap<SocketAddr, bool> = judged.collect();
        let allowed = match (found.values().any(|one| *one), found.values().all(|one| *one)) {
            (false, _) => Allowed::Is(false),
            (true, true) => Allowed::Is(true),
            (true, false) => Allowed::Depends("mixed".to_owned()),
        };
        let expected: BTreeMap<String, bool> =
            flow.endpoints.iter().map(|(one, allowed)| (without_brackets(one), *allowed)).collect();
        let texts: BTreeMap<String, bool> =
            found.iter().map(|(one, allowed)| (without_brackets(&one.to_string()), *allowed)).collect();
        if flow.allowed != allowed || expected != texts {
            let found = format!("{} {texts:?}", said(&allowed));
            self.differ(name, format!("{} {expected:?}", said(&flow.allowed)), found);
        }
    }

    fn differ(&mut self, connection: String, expected: String, found: String) {
        let Self { case, step, .. } = self;
        let difference =
            CaseDifference { case: (*case).to_owned(), step: *step, connection, expected, found };
        self.report.differences.push(difference);
    }
}

/// A connection for people.
fn connection(source: &str, destination: &str, traffic: Traffic, route: FlowRoute) -> String {
    let what = match traffic {
        Traffic::Port(protocol, port) => format!("{} {port}", protocol.name()),
        Traffic::Portless => "without ports".to_owned(),
    };
    let way = if route == FlowRoute::Tunnel { " through the tunnel" } else { "" };
    format!("{source} -> {destination} {what}{way}")
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

fn without_brackets(text: &str) -> String {
    text.replace(['[', ']'], "")
}

/// A judgement as a file has it.
fn written(judgement: &Judgement) -> WrittenJudgement {
    let (reason, by): (_, &[RuleRef]) = match &judgement.ground {
        Ground::NotAPod => ("not-a-pod", &[]),
        Ground::Loopback => ("loopback", &[]),
        Ground::OwnNode => ("local-node", &[]),
        Ground::NotIsolated | Ground::Undecided => ("not-isolated", &[]),
        Ground::Accepted(rules) => ("policy", rules),
        Ground::TunnelOpened(rules) => ("hbone", rules),
        Ground::Denied(rule) => ("policy", std::slice::from_ref(rule)),
        Ground::NoRuleMatched => ("no-rule-matched", &[]),
    };
    let rule = |RuleRef { policy, rule, peer, port, .. }: &RuleRef| WrittenRule {
        policy: policy.to_string(),
        rule: *rule,
        peer: *peer,
        port: *port,
    };
    WrittenJudgement {
        verdict: if judgement.is_allowed() { "allow" } else { "deny" }.to_owned(),
        reason: reason.to_owned(),
        selecting: judgement.selecting.iter().map(ToString::to_string).collect(),
        by: by.iter().map(rule).collect(),
    }
}
