//! Other users of the machine.

use anyhow::{Result, anyhow};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Runs a closure on a thread that is another user, without any capability.
///
/// # Errors
/// When the thread cannot become that user.
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<T> {
            let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
            set_thread_groups(&[])?;
            set_thread_res_gid(group, group, group)?;
            set_thread_res_uid(user, user, user)?;
            Ok(act())
        });
        thread.join().map_err(|_| anyhow!("the other user's thread panicked"))?
    })
}
