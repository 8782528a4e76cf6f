//! Whether what the kernel lacks is a module that nobody has loaded. None is loaded here.

use std::io::Read as _;
use std::path::Path;

use checks::CheckFinding;
use kernel::nft::Support;

/// Largest list of modules that is read, in bytes.
const MAX_LIST: u64 = 8 << 20;

/// Looks for modules of what is missing.
pub(super) fn look(modules: &Path, support: &Result<Support, String>) -> CheckFinding {
    let Ok(support) = support else { return CheckFinding::unknown("what the kernel lacks is not known") };
    let wanted = wanted(*support);
    if wanted.is_empty() {
        return CheckFinding::ok("nothing is missing: what rules need is built in or loaded");
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let dir = modules.join(&release);
    let Some(list) = read(&dir.join("modules.dep")) else {
        return CheckFinding::unknown(format!(
            "missing: {}; {} has no list of modules",
            wanted.join(", "),
            dir.display()
        ));
    };
    of_list(&wanted, &list, &release)
}

fn wanted(support: Support) -> Vec<&'static str> {
    let parts = [
        (support.tables, &["nf_tables"][..]),
        (support.redirect, &["nft_chain_nat", "nft_redir"]),
        (support.marks, &["nft_ct"]),
        (support.tproxy, &["nft_tproxy"]),
    ];
    parts.into_iter().filter(|(has, _)| !has).flat_map(|(_, names)| names.iter().copied()).collect()
}

fn of_list(wanted: &[&str], list: &str, release: &str) -> CheckFinding {
    let names: std::collections::BTreeSet<&str> = list.lines().filter_map(name).collect();
    let (there, absent): (Vec<&str>, Vec<&str>) = wanted.iter().partition(|name| names.contains(*name));
    let load = format!("modprobe {}", there.join(" && modprobe "));
    match (there.is_empty(), absent.is_empty()) {
        (_, true) => CheckFinding::failed(format!("not loaded: {}", there.join(", ")), load),
        (true, false) => CheckFinding::failed(
            format!("the kernel {release} has no module {}", absent.join(", ")),
            "install the kernel's extra modules, or take another kernel",
        ),
        (false, false) => {
            let text = format!("not loaded: {}; not there: {}", there.join(", "), absent.join(", "));
            CheckFinding::failed(text, load)
        }
    }
}

/// The module of a line such as `kernel/net/netfilter/nft_tproxy.ko.xz: …`.
fn name(line: &str) -> Option<&str> {
    let path = line.split(':').next()?;
    path.rsplit('/').next()?.split(".ko").next()
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_LIST).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_part_is_a_module_or_not_there() {
        let list = "kernel/net/netfilter/nft_tproxy.ko.xz: kernel/a.ko\nkernel/net/netfilter/nft_redir.ko:\n";
        for (wanted, text, advice) in [
            (&["nft_tproxy"][..], "not loaded: nft_tproxy", "modprobe nft_tproxy"),
            (
                &["nft_tproxy", "nft_redir"],
                "not loaded: nft_tproxy, nft_redir",
                "modprobe nft_tproxy && modprobe nft_redir",
            ),
            (&["nf_tables"], "the kernel 6.1 has no module nf_tables", "extra modules"),
            (&["nft_redir", "nft_ct"], "not loaded: nft_redir; not there: nft_ct", "modprobe nft_redir"),
        ] {
            let found = of_list(wanted, list, "6.1");
            assert_eq!(found.text, text);
            assert!(found.advice.as_deref().is_some_and(|found| found.contains(advice)), "{found}");
        }
    }
}
