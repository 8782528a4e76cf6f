//! Which options are followed while the agent runs, and what becomes of a change of the others.

use super::{Options, SPECS, Setting};

/// What a change of an option does while the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It counts at once, for the plugin and the agent.
    Counts,
    /// It counts from the agent's next start.
    Waits,
    /// The option has no effect at all.
    Nothing,
}

/// The options of a ConfigMap that has changed, as far as they can be followed.
#[derive(Debug)]
pub struct Changed {
    /// The options by which agent and plugin go from now on.
    pub options: Options,
    /// Names of options that have another value by now and wait for another start.
    pub waiting: Vec<&'static str>,
}

impl Options {
    /// These options, which a process was started with, after a change to `new`.
    pub fn changed_to(&self, new: &Self, ambient: bool) -> Changed {
        let mut changed = Changed { options: self.clone(), waiting: Vec::new() };
        for (index, spec) in SPECS.iter().enumerate() {
            if self.texts[index] == new.texts[index] {
                continue;
            }
            match change(spec.setting, ambient) {
                Change::Counts => changed.options.texts[index].clone_from(&new.texts[index]),
                Change::Waits => changed.waiting.push(spec.name),
                Change::Nothing => {}
            }
        }
        changed
    }
}

/// `ambient`: whether the agent is in ambient mode.
fn change(setting: Setting, ambient: bool) -> Change {
    match setting {
        Setting::ExcludeNamespaces
        | Setting::PodNamespace
        | Setting::AmbientEnablementSelector
        | Setting::AmbientDnsCapture
        | Setting::AmbientIpv6
        | Setting::EnableAmbientDetectionRetry
        | Setting::FailurePolicy
        | Setting::Capture
        | Setting::AddTimeout
        | Setting::FactsTimeout
        | Setting::RuntimeAnnotations
        | Setting::StrictStatus
        | Setting::VerifyInterval
        | Setting::VerifyFullInterval
        | Setting::VerifyRepair
        | Setting::AmbientVerifyInterval
        | Setting::RepairInitContainerName => Change::Counts,
        // The rules of pods in the mesh and the node's are in one backend, which is chosen at the start.
        Setting::NativeNftables if !ambient => Change::Counts,
        Setting::AmbientUseScopedXtablesLocking
        | Setting::LogLevel
        | Setting::CniNetworkConfig
        | Setting::CniNetworkConfigFile => Change::Nothing,
        _ => Change::Waits,
    }
}

#[cfg(test)]
mod tests;
