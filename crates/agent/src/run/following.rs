//! Options that change while the agent runs.

use std::sync::Arc;

use super::{Agent, Error, variable};
use crate::config::AgentConfig;
use crate::config_dir;
use crate::health::HealthPart;
use options::agent::Changed;

impl Agent {
    /// What a look at the options shows now, by what this process was started with.
    pub(super) fn changed(
        &self,
        reader: &mut config_dir::OptionsReader,
    ) -> Result<(AgentConfig, Vec<&'static str>), Error> {
        let new = reader.read(&variable)?;
        // All of it has to mean something, also what is for the next start.
        AgentConfig::new(&new, &variable)?;
        let Changed { options, waiting } =
            self.options_at_start.changed_to(&new, !self.config.ambient.is_off);
        Ok((AgentConfig::new(&options, &variable)?, waiting))
    }

    /// Lets changed options reach the agent and the plugin's configuration.
    pub(super) fn follow_options(self: &Arc<Self>, handle: install::Handle) {
        let Some(dir) = self.config.config_dir.clone() else { return };
        let agent = self.clone();
        let mut reader = self.options.clone();
        let mut before = self.config.install.entry.clone();
        let started = config_dir::watch(dir, move || match agent.changed(&mut reader) {
            Ok((config, waiting)) => {
                agent.tell_waiting(&waiting);
                // The agent first: it takes whatever a plugin announces by its new options.
                agent.ambient.follow(&config.ambient);
                agent.sidecars.follow(config.older.clone());
                agent.verifier.follow(&config.verify);
                let entry = config.install.entry;
                if entry != before {
                    agent.log.info("the plugin's options have changed", &[]);
                    handle.update(entry.clone());
                    before = entry;
                }
            }
            Err(error) => {
                agent.log.error(
                    "changed options cannot be used; agent and plugin keep the ones before",
                    &[("error", &error)],
                );
                let reason = format!("{error}; the plugin keeps the options before");
                agent.health.pending(HealthPart::Configuration, &reason);
            }
        });
        if let Err(error) = started {
            self.log.error("options are not watched", &[("error", &error)]);
        }
    }

    /// Says which changed options cannot be followed.
    fn tell_waiting(&self, waiting: &[&str]) {
        if waiting.is_empty() {
            return self.health.ready(HealthPart::Configuration);
        }
        let reason = format!(
            "changed options that this agent cannot follow while it runs: {}; restart it, or set them back",
            waiting.join(", ")
        );
        self.log.warn(&reason, &[]);
        self.health.pending(HealthPart::Configuration, &reason);
    }
}
