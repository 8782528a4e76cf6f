//! `install-cni delete-daemonset`: deletes the agent's DaemonSet and waits until its pods have ended. The chart runs it before an uninstallation, so
//! that every agent cleans up while its account and its roles still exist.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::daemonset::DEFAULT_NAME;
use cluster::{Access, ApiConnection, Writer};

/// The first word on the command line.
pub(crate) const NAME: &str = "delete-daemonset";

/// How long is waited for the pods; Helm waits five minutes for all of it.
const TIME: Duration = Duration::from_secs(180);
/// How long the API server has to take the deletion: the role of this program may be a second old.
const DELETION_TIME: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Ends with failure only when nothing was deleted: what was is not undone, and an uninstallation must not fail because a node is away.
pub(crate) fn run() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let namespace = variable("POD_NAMESPACE");
    if namespace.is_empty() {
        eprintln!(
            "install-cni {NAME}: POD_NAMESPACE is not set; set it to the namespace of DaemonSet {DEFAULT_NAME}"
        );
        return ExitCode::FAILURE;
    }
    let account = Some(variable("SERVICE_ACCOUNT_DIR")).filter(|dir| !dir.is_empty());
    let account = account.unwrap_or_else(|| ACCOUNT.to_owned());
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"));
    let access = Access::in_cluster(&host, &port, Path::new(&account));
    let connection = Arc::new(ApiConnection::new(access, env!("CARGO_PKG_VERSION")));
    let writer = Writer::new(connection, String::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(delete(&writer, &namespace)),
        Err(error) => {
            eprintln!("install-cni {NAME}: start the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn delete(writer: &Writer, namespace: &str) -> ExitCode {
    let (began, name) = (Instant::now(), format!("DaemonSet {namespace}/{DEFAULT_NAME}"));
    loop {
        match writer.delete_daemonset(namespace, DEFAULT_NAME).await {
            Ok(true) => break,
            Ok(false) => {
                println!("{name} does not exist: there is nothing to do");
                return ExitCode::SUCCESS;
            }
            Err(error) if began.elapsed() > DELETION_TIME => {
                eprintln!("install-cni {NAME}: {error}; helm uninstall --no-hooks goes on without this");
                return ExitCode::FAILURE;
            }
            Err(error) => eprintln!("{error}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    println!("{name} is being deleted; waiting until its pods have ended");
    while began.elapsed() < TIME {
        match writer.has_daemonset(namespace, DEFAULT_NAME).await {
            Ok(false) => {
                println!("{name} and its pods are gone after {} s", began.elapsed().as_secs());
                return ExitCode::SUCCESS;
            }
            Ok(true) => {}
            Err(error) => eprintln!("{error}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    println!(
        "{name} still has pods, on nodes that are away perhaps: kubectl -n {namespace} get pods -l k8s-app={DEFAULT_NAME} -o wide; \
         run cnictl uninstall on these nodes"
    );
    ExitCode::SUCCESS
}
