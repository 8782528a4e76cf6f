//! A ztunnel of either kind.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::{MeshPod, PATIENCE, eventually};

use crate::real::Real;
use crate::standin::StandIn;
use crate::town::Town;
use crate::{DNS, HBONE, INBOUND, OUTBOUND};

/// A running ztunnel.
pub enum Peer {
    /// Istio's.
    Real(Real),
    /// The one that stands in.
    StandIn(StandIn),
}

/// What it has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxies {
    /// Proxies started.
    pub started: usize,
    /// Proxies stopped.
    pub stopped: usize,
}

// === impl Peer ===

impl Peer {
    /// The executable, if there is one to use.
    fn program() -> Option<PathBuf> {
        std::env::var_os("ZTUNNEL_BIN").filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// Whether the real one is used.
    pub fn is_real() -> bool {
        Self::program().is_some()
    }

    /// Starts one that connects to the agent whenever that is there. `pods` is everybody whom it is to know, as from the control plane.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(town: &Town, pods: &[&MeshPod]) -> Result<Self> {
        match Self::program() {
            Some(program) => {
                println!("the peer is the real ztunnel, {}", program.display());
                Ok(Self::Real(Real::start(&program, &town.mesh.ztunnel_socket(), pods)?))
            }
            None => {
                println!("the peer is the stand-in: ZTUNNEL_BIN names no ztunnel");
                Ok(Self::StandIn(StandIn::start(&town.mesh.ztunnel_socket())?))
            }
        }
    }

    /// TCP ports on which it listens in a pod.
    pub fn ports() -> BTreeSet<u16> {
        let all = [OUTBOUND, INBOUND, HBONE].into_iter();
        all.chain(Self::is_real().then_some(DNS)).collect()
    }

    /// Whether it has the agent's snapshot and every proxy that it should have.
    ///
    /// # Errors
    /// It does not answer.
    pub fn is_ready(&self) -> Result<bool> {
        match self {
            Self::Real(real) => real.is_ready(),
            Self::StandIn(one) => Ok(one.is_ready()),
        }
    }

    /// Waits until it is ready, or is not.
    ///
    /// # Errors
    /// It does not come to that; the text has its log.
    pub fn wait_ready(&self, wanted: bool) -> Result<()> {
        eventually(&format!("ztunnel is ready: {wanted}"), 2 * PATIENCE, || {
            ensure!(self.is_ready()? == wanted, "it is not so\n{}", self.log());
            Ok(())
        })
    }

    /// What it has done so far.
    ///
    /// # Errors
    /// It does not answer.
    pub fn proxies(&self) -> Result<Proxies> {
        match self {
            Self::Real(real) => real.proxies(),
            Self::StandIn(one) => Ok(one.proxies()),
        }
    }

    /// What it has to say, for the message of a failed test.
    pub fn log(&self) -> String {
        match self {
            Self::Real(real) => real.log(),
            Self::StandIn(one) => format!("broken rules: {:?}", one.violations()),
        }
    }

    /// Ends it as kubelet does: no new connections, and time for those that there are. Waits for nothing.
    ///
    /// # Errors
    /// It is gone already.
    pub fn drain(&mut self) -> Result<()> {
        match self {
            Self::Real(real) => real.drain(),
            Self::StandIn(one) => {
                one.drain();
                Ok(())
            }
        }
    }

    /// Waits for the end after [`Peer::drain`], which has to be a good one.
    ///
    /// # Errors
    /// It goes on, or ends with a failure.
    pub fn wait_end(&mut self, limit: Duration) -> Result<()> {
        match self {
            Self::Real(real) => real.wait_end(limit),
            Self::StandIn(one) => {
                one.cut();
                Ok(())
            }
        }
    }

    /// Ends it at once, with every connection.
    pub fn kill(self) {
        drop(self);
    }

    /// Fails if the agent has broken a rule of the protocol, or the real one has found fault with what it said.
    ///
    /// # Errors
    /// It has.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Real(real) => real.check(),
            Self::StandIn(one) => {
                let violations = one.violations();
                ensure!(violations.is_empty(), "{violations:?}");
                Ok(())
            }
        }
    }
}
