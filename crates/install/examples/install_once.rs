//! Installs on the node whose directories lie in the given one, and ends when it is ready; for tests that kill it before.

use std::path::Path;

use cni::conflist::PluginEntry;
use install::{
    Handle, InstallEvent, InstallMode, InstallOptions, Installer, KubeconfigOptions, Observer, ProgramAtEnd,
};

struct UntilReady(std::sync::mpsc::Receiver<Handle>);

impl Observer for UntilReady {
    fn event(&mut self, event: &InstallEvent<'_>) {
        println!("{event}");
        if matches!(event, InstallEvent::Ready { .. }) {
            self.0.iter().for_each(|handle| handle.stop());
        }
    }
}

fn main() {
    let Some(node) = std::env::args_os().nth(1) else { return eprintln!("name the node's directory") };
    let node = Path::new(&node);
    let options = InstallOptions {
        net_dir: node.join("net.d"),
        conf_name: None,
        mode: InstallMode::Chained,
        group_read: false,
        bin_source: node.join("image"),
        bin_targets: vec![node.join("bin")],
        run_dir: node.join("run"),
        kubeconfig: Some(KubeconfigOptions {
            protocol: "https".into(),
            host: "10.96.0.1".into(),
            port: "443".into(),
            ca_file: None,
            skip_tls_verify: false,
            service_account_dir: node.join("account"),
            mode: 0o600,
        }),
        entry: PluginEntry {
            plugin_log_level: "debug".into(),
            cni_agent_run_dir: "/path/to/kubeconfig".into(),
            pod_namespace: "my-namespace".into(),
            native_nftables: Some(false),
            ..PluginEntry::default()
        },
        program_at_end: ProgramAtEnd::Goes,
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    match Installer::new(options, Box::new(UntilReady(receiver))) {
        Ok(mut installer) => {
            let _ = sender.send(installer.handle());
            drop(sender);
            installer.run();
        }
        Err(error) => eprintln!("{error}"),
    }
}
