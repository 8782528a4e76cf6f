//! Log lines: [`Journal`] is the node agent's log, [`Logger`] that of a short-lived process, which writes JSON on stderr at once, to a
//! size-limited file, and in one request to the node agent.
//!
//! A [`Logger`] is made in `main` and handed down by reference; there is no global one. Until the configuration is known,
//! lines go to stderr and are kept in a bounded buffer; [`Logger::attach`] then opens the other sinks and hands them what
//! was kept. Nothing in here fails the operation that is being logged.
//!
//! Lines, file and request have the original's form. Callers see to it that the content of a kubeconfig is never a message or a label.

mod file;
mod journal;
mod level;
mod line;
mod logger;
mod socket;
mod stderr;

pub use file::{BACKUP_MAX_AGE, FILE_MAX_BYTES, FILE_NAME, is_log_file};
pub use journal::{BadLevels, Journal, Levels, Relayed, Scope};
pub use level::Level;
pub use line::{Label, time_text};
pub use logger::Logger;
pub use socket::MAX_POST;
