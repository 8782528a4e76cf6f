//! `page`: the node for people who look rather than read, in a browser, for as long as this program runs.
//!
//! Every page is whole without script; the script asks for the same page again and puts what has changed in place. Nothing is computed for it that
//! the agent does not have, a pod's rules aside, which are read from the kernel when that pod is looked at.

mod chart;
mod gate;
mod host;
mod html;
mod node;
mod pod;
mod server;
mod tenants;
mod way;

use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::configuration::ConfigurationArgs;
use crate::output::{VerbAnswer, print_now};
use gate::{BrowserSession, new_secret};
use server::{PageServer, serve};

const EXAMPLES: &str = "\
Examples:
  # Look at this node in a browser
  cnictl page --open

  # At another node: serve in the agent's container, and forward the port that is printed
  kubectl -n istio-system exec -it istio-cni-node-xxxxx -- cnictl page --port 8900
  kubectl -n istio-system port-forward istio-cni-node-xxxxx 8900

The address works once, for one browser. Only loopback is listened on, and nothing can be changed by the page.

Exit codes: 0 ended because nobody asked for half an hour
            1 failed
            2 wrong command line";

/// Show this node as a page in the browser, until Ctrl-C
///
/// Pods and their states over the last hour, what is wrong, one pod with its rules and a packet's way through them, policies, conflicts and the
/// agent's last log lines. The agent is asked over its socket; a pod's rules are read from the kernel.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PageArgs {
    /// Start the browser
    #[arg(long)]
    open: bool,
    /// Port on loopback [default: one that is free]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Another name under which the page may be asked for, such as one of a tunnel (repeat)
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

impl PageArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port))
            .with_context(|| format!("listen on port {} of loopback", self.port))?;
        let port = listener.local_addr().context("learn the port")?.port();
        let token = new_secret()?;
        let address = format!("http://127.0.0.1:{port}/open/{token}");
        let server = PageServer {
            session: BrowserSession::new(port, token, new_secret()?),
            hosts: self.hosts.clone(),
            node: node::NodePage::new(self.configuration.clone())?,
            pods: gate::LiveGate::default(),
        };
        let hint = if std::io::stdout().is_terminal() { "Ctrl-C ends it.\n" } else { "" };
        print_now(&format!("{address}\n{hint}"))?;
        if self.open {
            open(&address)?;
        }
        serve(&listener, &Arc::new(server))?;
        Ok(VerbAnswer::text(String::new()))
    }
}

/// Starts the user's browser.
fn open(address: &str) -> Result<()> {
    let mut command = Command::new("xdg-open");
    command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start xdg-open; open the address in a browser yourself, without --open")?;
    Ok(())
}
