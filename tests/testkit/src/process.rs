//! Programs that run beside a test.

use std::process::{Child, ExitStatus};

/// A running program, killed and waited for when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Takes charge of a child.
    #[must_use]
    pub fn new(child: Child) -> Self {
        Self { child }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes and its end.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its exit status, if it has ended by itself.
    ///
    /// # Errors
    /// From `waitpid(2)`.
    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill and only to collect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
