//! A case after some of its steps, and its connections.

use std::net::{IpAddr, SocketAddr};

use super::ends::{self, Destination};
use super::{Allowed, CaseError, Table, Truth, WrittenFlow};
use crate::compiled::ServicePoint;
use crate::{FlowRoute, PlainWorld, PolicyFlow, Traffic};

/// A case after some of its steps.
#[derive(Debug)]
pub struct CaseState<'f> {
    /// The case.
    pub case: &'f str,
    /// What it belongs to.
    pub family: &'f str,
    /// How many of its steps have been taken.
    pub step: usize,
    /// The objects as they are now.
    pub world: &'f PlainWorld,
    pub(super) truth: &'f Truth,
}

/// A connection of a case, with what the file says of it.
#[derive(Debug)]
pub struct CaseConnection<'f> {
    /// For people.
    pub name: String,
    /// What is judged: one, or one for each endpoint that the service proxy may choose.
    pub flows: Vec<PolicyFlow>,
    /// What the source asks for, where that is a Service. Nothing if it has no address of the family.
    pub service: Option<Option<ServicePoint>>,
    pub(super) written: WrittenAs<'f>,
}

/// Where a connection is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum WrittenAs<'f> {
    Cell(char),
    Flow(&'f WrittenFlow),
}

/// Connections, and cells that say that there is none.
pub(super) enum CaseEntry<'f> {
    Connection(CaseConnection<'f>),
    /// Its name, what it should be, and what is written.
    Nothing(String, char, char),
}

// === impl CaseState ===

impl<'f> CaseState<'f> {
    /// Its connections.
    ///
    /// # Errors
    /// One cannot be used.
    pub fn connections(&self) -> Result<Vec<CaseConnection<'f>>, CaseError> {
        let mut entries = Vec::new();
        self.truth.tables.iter().try_for_each(|table| self.table(table, &mut entries))?;
        self.truth.flows.iter().try_for_each(|flow| self.flow(flow, &mut entries))?;
        let connection = |entry| if let CaseEntry::Connection(one) = entry { Some(one) } else { None };
        Ok(entries.into_iter().filter_map(connection).collect())
    }

    pub(super) fn table(&self, table: &'f Table, entries: &mut Vec<CaseEntry<'f>>) -> Result<(), CaseError> {
        let (traffic, route) = (table.traffic.traffic()?, table.traffic.route()?);
        let v6 = table.traffic.is_v6()?.unwrap_or_default();
        let addresses: Vec<Option<IpAddr>> =
            table.pods.iter().map(|pod| ends::pod_address(self.world, pod, v6)).collect::<Result<_, _>>()?;
        let pods = table.pods.len();
        if table.rows.len() != pods || table.rows.iter().any(|row| row.chars().count() != pods) {
            return Err(CaseError::Shape { pods });
        }
        for (from, row) in table.rows.iter().enumerate() {
            for (to, cell) in row.chars().enumerate() {
                let name = connection(&table.pods[from], &table.pods[to], traffic, route);
                entries.push(match (addresses[from], addresses[to]) {
                    _ if from == to => CaseEntry::Nothing(name, '#', cell),
                    (Some(source), Some(destination)) => {
                        let flows = vec![PolicyFlow { source, destination, traffic, route }];
                        CaseEntry::Connection(CaseConnection {
                            name,
                            flows,
                            service: None,
                            written: WrittenAs::Cell(cell),
                        })
                    }
                    _ => CaseEntry::Nothing(name, '-', cell),
                });
            }
        }
        Ok(())
    }

    pub(super) fn flow(
        &self,
        flow: &'f WrittenFlow,
        entries: &mut Vec<CaseEntry<'f>>,
    ) -> Result<(), CaseError> {
        let (traffic, route) = (flow.traffic.traffic()?, flow.traffic.route()?);
        let written = ends::family_of(&flow.src).or_else(|| ends::family_of(&flow.dst));
        let v6 = flow.traffic.is_v6()?.or(written).unwrap_or_default();
        let source = ends::address(self.world, &flow.src, v6)?;
        let name = connection(&flow.src, &flow.dst, traffic, route);
        let (flows, service) = match ends::destination(self.world, &flow.dst, v6, traffic)? {
            Destination::Address(destination) => {
                (vec![PolicyFlow { source, destination, traffic, route }], None)
            }
            Destination::Endpoints(asked, endpoints) => {
                let one = |(destination, port)| {
                    let traffic = match traffic {
                        Traffic::Port(protocol, _) => Traffic::Port(protocol, port),
                        Traffic::Portless => traffic,
                    };
                    PolicyFlow { source, destination, traffic, route: FlowRoute::Service }
                };
                (endpoints.into_iter().map(one).collect(), Some(asked))
            }
        };
        entries.push(CaseEntry::Connection(CaseConnection {
            name,
            flows,
            service,
            written: WrittenAs::Flow(flow),
        }));
        Ok(())
    }
}

// === impl CaseConnection ===

impl CaseConnection<'_> {
    /// Whether the file allows one of the connection's flows; nothing where it does not say.
    pub fn allows(&self, flow: &PolicyFlow) -> Option<bool> {
        match self.written {
            WrittenAs::Cell('.') => Some(true),
            WrittenAs::Cell('X') => Some(false),
            WrittenAs::Cell(_) => None,
            WrittenAs::Flow(written) if self.service.is_some() => {
                let Traffic::Port(_, port) = flow.traffic else { return None };
                let name = without_brackets(&SocketAddr::new(flow.destination, port).to_string());
                written
                    .endpoints
                    .iter()
                    .find(|(one, _)| without_brackets(one) == name)
                    .map(|(_, allowed)| *allowed)
            }
            WrittenAs::Flow(written) => match written.allowed {
                Allowed::Is(allowed) => Some(allowed),
                Allowed::Depends(_) => None,
            },
        }
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

pub(super) fn without_brackets(text: &str) -> String {
    text.replace(['[', ']'], "")
}
