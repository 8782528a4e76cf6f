//! What is said: protobuf messages of package `istio.workload.zds`, one in each packet.
//!
//! The structs are written by hand with prost's derive: eight messages do not pay for a protobuf compiler at build time.

use prost::{Enumeration, Message, Oneof};

/// Largest packet in either direction.
pub const MAX_PACKET: usize = 1024;

/// A pod as it is sent to ztunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workload {
    /// `metadata.uid`.
    pub uid: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// `spec.serviceAccountName`; may be empty.
    pub service_account: String,
}

/// Version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum ZdsVersion {
    /// None.
    NotUsed = 0,
    /// The only one.
    V1 = 1,
}

/// The first packet of a ztunnel.
#[derive(Clone, PartialEq, Message)]
pub struct ZdsHello {
    /// Of a [`ZdsVersion`]; another one is accepted, too.
    #[prost(enumeration = "ZdsVersion", tag = "1")]
    pub version: i32,
}

/// Every packet of the agent.
#[derive(Clone, PartialEq, Message)]
pub struct WorkloadRequest {
    /// What is to be done.
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    pub payload: Option<Payload>,
}

/// What a ztunnel is to do.
#[derive(Clone, PartialEq, Oneof)]
pub enum Payload {
    /// Serve a pod, whose namespace comes along.
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    /// Stop serving a pod.
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    /// All pods have been told: those that were not are to be stopped.
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    /// Go on with a pod whose namespace the agent does not have.
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

/// See [`Payload::Add`].
#[derive(Clone, PartialEq, Message)]
pub struct AddWorkload {
    /// Of the pod.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Never absent: ztunnel ends itself over that.
    #[prost(message, optional, tag = "2")]
    pub workload_info: Option<WorkloadInfo>,
}

/// Who a pod is.
#[derive(Clone, PartialEq, Message)]
pub struct WorkloadInfo {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Service account.
    #[prost(string, tag = "3")]
    pub service_account: String,
}

/// See [`Payload::Keep`]. The uid has another number than in [`DelWorkload`].
#[derive(Clone, PartialEq, Message)]
pub struct KeepWorkload {
    /// Of the pod.
    #[prost(string, tag = "1")]
    pub uid: String,
}

/// See [`Payload::Del`].
#[derive(Clone, PartialEq, Message)]
pub struct DelWorkload {
    /// Of the pod.
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// See [`Payload::SnapshotSent`].
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotSent {}

/// Every later packet of a ztunnel.
#[derive(Clone, PartialEq, Message)]
pub struct WorkloadResponse {
    /// What came of the request.
    #[prost(oneof = "Answer", tags = "1")]
    pub payload: Option<Answer>,
}

/// What came of a request.
#[derive(Clone, PartialEq, Oneof)]
pub enum Answer {
    /// It is dealt with.
    #[prost(message, tag = "1")]
    Ack(Ack),
}

/// See [`Answer::Ack`].
#[derive(Clone, PartialEq, Message)]
pub struct Ack {
    /// Why not; empty when all is well.
    #[prost(string, tag = "1")]
    pub error: String,
}

// === impl Workload ===

impl Workload {
    /// `namespace/name`.
    pub fn pod(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

// === impl Payload ===

impl Payload {
    /// Asks for a pod to be served.
    pub fn add(workload: &Workload) -> Self {
        let Workload { uid, name, namespace, service_account } = workload.clone();
        let workload_info = Some(WorkloadInfo { name, namespace, service_account });
        Self::Add(AddWorkload { uid, workload_info })
    }

    /// As a packet.
    pub fn packet(self) -> Vec<u8> {
        WorkloadRequest { payload: Some(self) }.encode_to_vec()
    }
}

/// Reads a ztunnel's answer: its error, empty when all is well. A message without an answer counts as good, unknown members as absent.
///
/// # Errors
/// It is none.
pub fn read_answer(packet: &[u8]) -> Result<String, prost::DecodeError> {
    let response = WorkloadResponse::decode(packet)?;
    Ok(response.payload.map_or_else(String::new, |Answer::Ack(ack)| ack.error))
}

/// Reads a ztunnel's first packet: the version that it speaks.
///
/// # Errors
/// It is none.
pub fn read_hello(packet: &[u8]) -> Result<i32, prost::DecodeError> {
    ZdsHello::decode(packet).map(|hello| hello.version)
}
