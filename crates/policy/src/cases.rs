//! Files of cases: clusters, changes of them, and the right verdicts, as JSON.
//!
//! A file has `clusters`, objects by name, and `cases`. A case begins with a cluster and its own `policies`, then comes `setup`, changes of
//! objects; its `tables` and `flows` are the verdicts then, and each of its `steps` is further changes with verdicts of their own. In a table a row
//! is a source and a column a destination: `.` allowed, `X` denied, `#` the pod itself, `-` no address of the family.

mod change;
mod compare;
mod ends;
mod rules;
mod state;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{FlowVerdict, PlainKind, PlainWorld, PolicyFlow};
pub use rules::{PointDifference, RulesReport, point_difference};
pub use state::{CaseConnection, CaseState};

/// A file of cases.
#[derive(Debug, Deserialize)]
pub struct CaseFile {
    clusters: BTreeMap<String, BTreeMap<String, Vec<Box<RawValue>>>>,
    cases: Vec<PolicyCase>,
}

/// A case.
#[derive(Debug, Deserialize)]
struct PolicyCase {
    name: String,
    #[serde(default)]
    family: String,
    cluster: String,
    #[serde(default)]
    policies: Vec<Box<RawValue>>,
    #[serde(default)]
    setup: Vec<change::ObjectChangeCase>,
    #[serde(flatten)]
    truth: Truth,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    change: Vec<change::ObjectChangeCase>,
    #[serde(flatten)]
    truth: Truth,
}

/// The right verdicts of a state.
#[derive(Debug, Default, Deserialize)]
struct Truth {
    #[serde(default)]
    tables: Vec<Table>,
    #[serde(default)]
    flows: Vec<WrittenFlow>,
}

#[derive(Debug, Deserialize)]
struct Table {
    #[serde(flatten)]
    traffic: WrittenTraffic,
    pods: Vec<String>,
    rows: Vec<String>,
}

/// What tables and flows have in common.
#[derive(Debug, Deserialize)]
struct WrittenTraffic {
    protocol: String,
    port: u16,
    family: Option<String>,
    path: Option<String>,
}

#[derive(Debug, Deserialize)]
struct WrittenFlow {
    src: String,
    dst: String,
    #[serde(flatten)]
    traffic: WrittenTraffic,
    allowed: Allowed,
    egress: Option<WrittenJudgement>,
    ingress: Option<WrittenJudgement>,
    #[serde(default)]
    endpoints: BTreeMap<String, bool>,
}

/// `true`, `false`, or `"mixed"` where it depends on the endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Allowed {
    Is(bool),
    Depends(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct WrittenJudgement {
    verdict: String,
    reason: String,
    selecting: Vec<String>,
    by: Vec<WrittenRule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct WrittenRule {
    policy: String,
    rule: usize,
    peer: Option<usize>,
    port: Option<usize>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CasesError {
    /// It is not JSON, or has another form.
    #[error("it is not a file of cases: {0}; give JSON with clusters and cases")]
    Form(#[from] serde_json::Error),
    /// A part of a case cannot be used.
    #[error("case {case}: {cause}")]
    Case {
        /// Its name.
        case: String,
        /// What is wrong with it.
        cause: CaseError,
    },
}

/// What is wrong with a case.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// It begins with a cluster that the file does not have.
    #[error("the file has no cluster {0:?}; add it to clusters")]
    NoCluster(String),
    /// An object is not one of its kind.
    #[error("a {kind} cannot be read: {cause}; correct the object")]
    Object {
        /// Its kind.
        kind: String,
        /// The parser's words.
        cause: serde_json::Error,
    },
    /// An object is of a kind that cases do not have.
    #[error(
        "objects of kind {0:?} are unknown; use Namespace, Node, Pod, NetworkPolicy, Service or EndpointSlice"
    )]
    Kind(String),
    /// A change is neither of the two.
    #[error("a change is {0:?}; use put or delete")]
    Change(String),
    /// An end of a connection that there is not.
    #[error(
        "{0:?} is no end of a connection here; give a pod as NAMESPACE/NAME, an address, node:NAME, or svc:NAMESPACE/NAME, that the case has"
    )]
    End(String),
    /// A protocol, path or family that is unknown.
    #[error("{field} is {value:?}, which is unknown")]
    Word {
        /// Of a table or flow.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// A table whose rows do not fit its pods.
    #[error("a table has {pods} pods, and a row or the number of rows is not as long")]
    Shape {
        /// How many.
        pods: usize,
    },
}

/// What a comparison comes to.
#[derive(Debug, Default)]
pub struct CaseReport {
    /// Cases that were looked at.
    pub cases: usize,
    /// Cells of tables.
    pub cells: usize,
    /// Single connections.
    pub flows: usize,
    /// Where the verdict is not as the file says.
    pub differences: Vec<CaseDifference>,
}

/// A verdict that is not as the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseDifference {
    /// The case.
    pub case: String,
    /// The step after which it is so, from 1; 0 before the first.
    pub step: usize,
    /// The connection.
    pub connection: String,
    /// What the file says.
    pub expected: String,
    /// What was found.
    pub found: String,
}

// === impl CaseFile ===

impl CaseFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(text: &str) -> Result<Self, CasesError> {
        Ok(serde_json::from_str(text)?)
    }

    /// Compares each verdict of the file with what `judge` says.
    ///
    /// # Errors
    /// A case cannot be used.
    pub fn compare(
        &self,
        judge: impl Fn(&PlainWorld, &PolicyFlow) -> FlowVerdict,
    ) -> Result<CaseReport, CasesError> {
        let mut report = CaseReport { cases: self.cases.len(), ..CaseReport::default() };
        self.states(|state| compare::CaseComparison { judge: &judge, report: &mut report }.state(state))?;
        Ok(report)
    }

    /// Shows each case as it begins, and after each of its steps.
    ///
    /// # Errors
    /// A case cannot be used, or `look` says so.
    pub fn states(
        &self,
        mut look: impl FnMut(&CaseState<'_>) -> Result<(), CaseError>,
    ) -> Result<(), CasesError> {
        for case in &self.cases {
            self.states_of(case, &mut look)
                .map_err(|cause| CasesError::Case { case: case.name.clone(), cause })?;
        }
        Ok(())
    }

    fn states_of(
        &self,
        case: &PolicyCase,
        look: &mut impl FnMut(&CaseState<'_>) -> Result<(), CaseError>,
    ) -> Result<(), CaseError> {
        let mut world = PlainWorld::default();
        let cluster =
            self.clusters.get(&case.cluster).ok_or_else(|| CaseError::NoCluster(case.cluster.clone()))?;
        for (list, objects) in cluster {
            let kind = PlainKind::of_list(list).ok_or_else(|| CaseError::Kind(list.clone()))?;
            objects.iter().try_for_each(|object| {
                kind.put(&mut world, object).map_err(|cause| CaseError::object(kind, cause))
            })?;
        }
        for policy in &case.policies {
            let kind = PlainKind::NetworkPolicy;
            kind.put(&mut world, policy).map_err(|cause| CaseError::object(kind, cause))?;
        }
        world.settle_tenants();
        case.setup.iter().try_for_each(|change| change.apply(&mut world))?;
        let (name, family) = (&*case.name, &*case.family);
        look(&CaseState { case: name, family, step: 0, world: &world, truth: &case.truth })?;
        for (step, Step { change, truth }) in (1..).zip(&case.steps) {
            change.iter().try_for_each(|change| change.apply(&mut world))?;
            look(&CaseState { case: name, family, step, world: &world, truth })?;
        }
        Ok(())
    }
}

impl CaseError {
    fn object(kind: PlainKind, cause: serde_json::Error) -> Self {
        Self::Object { kind: kind.name().to_owned(), cause }
    }
}

impl fmt::Display for CaseDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, step, connection, expected, found } = self;
        f.write_str(case)?;
        if *step > 0 {
            write!(f, ", step {step}")?;
        }
        write!(f, ": {connection}: the file says {expected}; found {found}")
    }
}
