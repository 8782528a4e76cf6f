//! Branch network interfaces of EKS pods (security groups for pods).
//!
//! Such a pod's traffic arrives by a VLAN interface whose routing rule comes before everything else. Answers to probes of the node would
//! leave by that way too; two more rules bring probes to the pod and its answers back to the node.

use std::net::IpAddr;
use std::path::Path;

use netns::InsideHost;
use ruleset::Family;
use rustix::io::Errno;

use crate::netlink::NetlinkSocket;
use crate::route::Error;
use crate::route::branch::{self, Listed, RuleRequest};

/// Priority of the rule to the pod.
const TO_POD: u32 = 512;
/// The routing tables of every namespace (`RT_TABLE_MAIN`, `RT_TABLE_LOCAL` of linux/rtnetlink.h).
const MAIN: u32 = 254;
const LOCAL: u32 = 255;

/// The rules of one pod's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// The pod's address.
    pub ip: IpAddr,
    /// The routing table that leads to it.
    pub table: u32,
    /// The interface by which its traffic arrives.
    pub interface: String,
    /// Priority of the rule for what arrives by it.
    pub priority: u32,
}

/// Whether such pods can exist on this node: the network plugin turns early demultiplexing off for them.
#[must_use]
pub fn is_relevant(proc_root: &Path) -> bool {
    let file = proc_root.join("sys/net/ipv4/tcp_early_demux");
    std::fs::read(file).is_ok_and(|text| text.first() == Some(&b'0'))
}

/// Adds the rules for a pod's address, if it has a branch interface. What is there already is fine.
///
/// # Errors
/// The kernel did not take them; none is left.
pub fn add(_: &InsideHost<'_>, ip: IpAddr) -> Result<Option<Branch>, Error> {
    let ip = ip.to_canonical();
    let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
    let mut socket = branch::open()?;
    let Some(found) = find(ip, &branch::list(&mut socket, family)?) else { return Ok(None) };
    add_both(&requests(&found), |request, add| order(&mut socket, request, add))?;
    Ok(Some(found))
}

/// Adds the first, then the second. `order` says whether it changed something. Where the second fails, the first goes again if it is new.
fn add_both<E>(
    [to_pod, from_pod]: &[RuleRequest<'_>; 2],
    mut order: impl FnMut(&RuleRequest<'_>, bool) -> Result<bool, E>,
) -> Result<(), E> {
    let added = order(to_pod, true)?;
    if let Err(error) = order(from_pod, true) {
        if added {
            // The failure that led here is the one to tell.
            let _ = order(to_pod, false);
        }
        return Err(error);
    }
    Ok(())
}

/// Removes the rules of a pod's address; none are fine.
///
/// # Errors
/// One is left.
pub fn remove(_: &InsideHost<'_>, branch: &Branch) -> Result<(), Error> {
    let mut socket = branch::open()?;
    let results = requests(branch).map(|request| order(&mut socket, &request, false));
    results.into_iter().try_for_each(|result| result.map(drop))
}

fn requests(branch: &Branch) -> [RuleRequest<'_>; 2] {
    let Branch { ip, table, interface, priority } = branch;
    [
        RuleRequest::To { ip: *ip, table: *table, priority: TO_POD },
        RuleRequest::From { v4: ip.is_ipv4(), interface, table: LOCAL, priority: *priority },
    ]
}

/// Whether something changed.
fn order(socket: &mut NetlinkSocket, request: &RuleRequest<'_>, add: bool) -> Result<bool, Error> {
    match branch::order(socket, request, add) {
        Ok(()) => Ok(true),
        Err(error) if add && error.errno() == Some(Errno::EXIST) => Ok(false),
        Err(error) if !add && matches!(error.errno(), Some(Errno::NOENT | Errno::SRCH)) => Ok(false),
        Err(error) => Err(branch::failed(request, add, error)),
    }
}

/// The table of a rule for an interface that leads to the address by the same interface.
fn find(ip: IpAddr, listed: &Listed) -> Option<Branch> {
    listed.rules.iter().filter(|rule| rule.table > 0 && rule.table != MAIN && rule.table != LOCAL).find_map(
        |rule| {
            let leads = |route: &&branch::AddressRoute| {
                route.table == rule.table && route.to == ip && route.interface == rule.interface
            };
            listed.routes.iter().find(leads)?;
            Some(Branch {
                ip,
                table: rule.table,
                interface: rule.interface.clone(),
                priority: rule.priority.saturating_sub(1),
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::branch::{AddressRoute, InterfaceRule};

    fn listed(table: u32, to: &str, interface: &str) -> Listed {
        let rule = InterfaceRule { table: 101, interface: "vlan.eth.1".into(), priority: 10 };
        let main = InterfaceRule { table: MAIN, interface: "vlan.eth.1".into(), priority: 9 };
        let route = AddressRoute {
            table,
            to: to.parse().unwrap_or(IpAddr::from([0; 4])),
            interface: interface.into(),
        };
        Listed { rules: vec![main, rule], routes: vec![route] }
    }

    /// What is ordered where the first rule is there or not and the second is refused: whether it is the pod's, whether it is added.
    fn orders(first_is_new: bool) -> Vec<(bool, bool)> {
        let ip = IpAddr::from([10, 0, 0, 7]);
        let branch = Branch { ip, table: 101, interface: "vlan.eth.1".into(), priority: 9 };
        let mut seen = Vec::new();
        let result = add_both(&requests(&branch), |request, add| {
            let to_pod = matches!(request, RuleRequest::To { .. });
            seen.push((to_pod, add));
            if to_pod { Ok(first_is_new) } else { Err("refused") }
        });
        assert_eq!(result, Err("refused"));
        seen
    }

    #[test]
    fn a_refused_second_rule_takes_a_new_first_one_back() {
        assert_eq!(orders(true), [(true, true), (false, true), (true, false)]);
        assert_eq!(orders(false), [(true, true), (false, true)], "it was there before and stays");
    }

    #[test]
    fn a_host_route_by_the_interface_of_a_rule() {
        let ip = IpAddr::from([10, 0, 0, 7]);
        let found = find(ip, &listed(101, "10.0.0.7", "vlan.eth.1"));
        let wanted = Branch { ip, table: 101, interface: "vlan.eth.1".into(), priority: 9 };
        assert_eq!(found, Some(wanted));
        for other in [
            listed(102, "10.0.0.7", "vlan.eth.1"),
            listed(101, "10.0.0.8", "vlan.eth.1"),
            listed(101, "10.0.0.7", "eth0"),
            listed(MAIN, "10.0.0.7", "vlan.eth.1"),
        ] {
            assert_eq!(find(ip, &other), None, "{other:?}");
        }
    }
}
