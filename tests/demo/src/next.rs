//! What to type after the demo: real commands on files of the checkout.

use std::path::{Path, PathBuf};

use crate::show::Screen;

/// A manifest that the commands are about, in the checkout.
const WEB: &str = "tests/demo/manifests/shop_web.yaml";

impl Screen {
    /// Commands that show more, where the demo was started in the checkout and all went well.
    pub(crate) fn next(self, programs: &Path, problems: usize) {
        if problems > 0 || !Path::new(WEB).is_file() {
            return;
        }
        self.heading("Next", "type, in this folder:");
        commands(programs).iter().for_each(|command| self.line(&format!("  {command}")));
        self.line("README.md tells how to install it, docs/concepts.md draws the way of a packet; make test runs all tests");
    }
}

fn commands(programs: &Path) -> Vec<String> {
    vec![
        format!("export PATH=\"{}:$PATH\"", folder(programs).display()),
        format!("cnictl explain {WEB} --to 203.0.113.9:443 --uid 1000"),
        format!("cnictl explain {WEB} --in --to :8080 --trace"),
        format!("cnictl render {WEB} --backend iptables"),
    ]
}

/// Under the checkout: short, and it holds in other folders too.
fn folder(programs: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let programs = here.join(programs);
    programs.strip_prefix(&here).map_or(programs.clone(), |below| Path::new("$PWD").join(below))
}
