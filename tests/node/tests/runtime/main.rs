//! Pods of a real container runtime whose CNI chain ends with `istio-cni`.

mod agent;
mod capture;
mod configuration;
mod fixture;
mod harness;
mod many;
mod refusal;
mod removal;
