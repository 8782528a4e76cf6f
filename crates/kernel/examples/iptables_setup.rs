//! Sets a namespace up again and again, to be killed by a test while it does: `RUN_DIR=… iptables_setup NAMESPACE legacy|nft [no-ipv6]`.

#[path = "../tests/iptables/support.rs"]
mod support;

use kernel::RuleStore;
use kernel::iptables::{Iptables, Variant, run_supervisor_if_asked};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let supervisor = run_supervisor_if_asked();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, variant, rest @ ..] = arguments.as_slice() else {
        return Err("usage: iptables_setup NAMESPACE legacy|nft [no-ipv6]".into());
    };
    let variant = if variant == "legacy" { Variant::Legacy } else { Variant::Nft };
    let run_dir = std::env::var_os("RUN_DIR").ok_or("RUN_DIR is not set")?;
    let iptables = Iptables::forced(variant).supervised(supervisor).locking(run_dir.as_ref());
    let change = netns::Netns::open(path)?
        .enter(|inside| iptables.setup(inside, &[support::sidecar(rest.is_empty())]))??;
    println!("{change:?} {:?}", iptables.take_warnings());
    Ok(())
}
