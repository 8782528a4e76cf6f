//! The plugin on a node: binaries, kubeconfig, CNI configuration; placed, watched, restored.
