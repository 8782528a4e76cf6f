//! Services and their endpoints as words.

use std::sync::Arc;

use facts::endpointslice::{Endpoint, EndpointPort};
use facts::networkpolicy::PolicyProtocol;
use facts::service::ServicePort;
use facts::{EndpointSlice, Service};

use super::words::{SnapshotWords, SnapshotWriter};

/// An object with its namespace and name.
type NamedObject<T> = (Box<str>, Box<str>, Arc<T>);

/// Services as an agent knows them that watches them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotServices {
    /// Services, with namespace and name.
    pub services: Vec<NamedObject<Service>>,
    /// Parts of their endpoints, with namespace and name.
    pub slices: Vec<NamedObject<EndpointSlice>>,
}

/// What is said of an endpoint by a letter: whether it is ready, answers, is ending.
const FLAGS: [char; 3] = ['r', 's', 't'];

pub(super) fn write_service((namespace, name, service): &NamedObject<Service>, out: &mut SnapshotWriter) {
    out.word(namespace);
    out.word(name);
    out.list(&service.addresses, |address, out| out.show(address));
    out.list(&service.ports, |port, out| {
        out.word(&port.name);
        out.word(port.protocol.name());
        out.show(&port.number);
    });
}

pub(super) fn read_service(words: &mut SnapshotWords<'_>) -> Option<NamedObject<Service>> {
    let (namespace, name) = (words.text()?, words.text()?);
    let addresses = words.list(SnapshotWords::number)?.into();
    let ports = words.list(|words| {
        Some(ServicePort { name: words.text()?, protocol: read_protocol(words)?, number: words.number()? })
    })?;
    Some((namespace, name, Arc::new(Service { addresses, ports: ports.into(), ..Service::default() })))
}

pub(super) fn write_slice((namespace, name, slice): &NamedObject<EndpointSlice>, out: &mut SnapshotWriter) {
    out.word(namespace);
    out.word(name);
    out.word(&slice.service);
    out.list(&slice.ports, |port, out| {
        out.word(&port.name);
        out.word(port.protocol.name());
        // No port has the number 0.
        out.show(&port.number.unwrap_or_default());
    });
    out.list(&slice.endpoints, |endpoint, out| {
        let Endpoint { addresses, ready, serving, terminating } = endpoint;
        let flags = FLAGS.into_iter().zip([*ready, *serving, *terminating]);
        out.word(&flags.filter_map(|(letter, is_so)| is_so.then_some(letter)).collect::<String>());
        out.list(addresses, |address, out| out.show(address));
    });
}

pub(super) fn read_slice(words: &mut SnapshotWords<'_>) -> Option<NamedObject<EndpointSlice>> {
    let (namespace, name, service) = (words.text()?, words.text()?, words.text()?);
    let ports = words.list(|words| {
        let (name, protocol) = (words.text()?, read_protocol(words)?);
        let number = Some(words.number()?).filter(|number| *number != 0);
        Some(EndpointPort { name, protocol, number })
    })?;
    let endpoints = words.list(|words| {
        let flags = words.text()?;
        let [ready, serving, terminating] = FLAGS.map(|letter| flags.contains(letter));
        let addresses = words.list(SnapshotWords::number)?.into();
        Some(Endpoint { addresses, ready, serving, terminating })
    })?;
    let slice = EndpointSlice { service, endpoints: endpoints.into(), ports: ports.into() };
    Some((namespace, name, Arc::new(slice)))
}

fn read_protocol(words: &mut SnapshotWords<'_>) -> Option<PolicyProtocol> {
    PolicyProtocol::parse(Some(words.raw()?)).ok()
}
