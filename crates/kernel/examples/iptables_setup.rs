//! Sets a namespace up with two layers, to be killed by a test while it does: `RUN_DIR=… iptables_setup NAMESPACE legacy|nft|netlink
//! [no-ipv6]`.

#[path = "../tests/iptables/support.rs"]
mod support;

use kernel::RuleStore;
use kernel::iptables::{Iptables, Variant, run_supervisor_if_asked};
use kernel::nft::Nftables;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let supervisor = run_supervisor_if_asked();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, variant, rest @ ..] = arguments.as_slice() else {
        return Err("usage: iptables_setup NAMESPACE legacy|nft|netlink [no-ipv6]".into());
    };
    let layers = support::layers(rest.is_empty());
    if variant == "netlink" {
        netns::Netns::open(path)?.enter(|inside| Nftables.setup(inside, &layers))??;
        return Ok(());
    }
    let variant = if variant == "legacy" { Variant::Legacy } else { Variant::Nft };
    let run_dir = std::env::var_os("RUN_DIR").ok_or("RUN_DIR is not set")?;
    let iptables = Iptables::forced(variant).supervised(supervisor).locking(run_dir.as_ref());
    let change = netns::Netns::open(path)?.enter(|inside| iptables.setup(inside, &layers))??;
    println!("{change:?} {:?}", iptables.take_warnings());
    Ok(())
}
