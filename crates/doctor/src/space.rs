//! Whether a directory can take files.

use std::path::Path;

use checks::CheckFinding;
use rustix::fs::{Access, access, statvfs};
use rustix::io::Errno;

/// Part of a file system that has to be free, of its blocks and of its files: one in a hundred.
const LEAST_FREE: u64 = 100;

/// Looks whether files can be written to a directory, without writing one.
pub(crate) fn look(dir: &Path, advice: &str) -> CheckFinding {
    let path = dir.display();
    let failed = |text: String| CheckFinding::failed(text, advice);
    match access(dir, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => {}
        Err(Errno::NOENT) => return failed(format!("{path} is not there")),
        Err(Errno::ROFS) => return failed(format!("{path} is on a read-only file system")),
        Err(Errno::ACCESS | Errno::PERM) => {
            return CheckFinding::unknown(format!(
                "{path} may not be looked at, or not be written to: permission denied"
            ));
        }
        Err(error) => return failed(format!("{path} cannot be used: {error}")),
    }
    if !dir.is_dir() {
        return failed(format!("{path} is not a directory"));
    }
    match statvfs(dir) {
        Ok(fs) if is_full(fs.f_bavail, fs.f_blocks) => {
            failed(format!("less than 1 % of the space of {path} is free"))
        }
        Ok(fs) if is_full(fs.f_favail, fs.f_files) => {
            failed(format!("less than 1 % of the files that {path} can have is free"))
        }
        Ok(_) => CheckFinding::ok(format!("{path} can be written to, and has space")),
        Err(error) => CheckFinding::unknown(format!("the space of {path} cannot be asked for: {error}")),
    }
}

/// Some file systems count nothing.
fn is_full(free: u64, all: u64) -> bool {
    all > 0 && free < all.div_ceil(LEAST_FREE)
}

#[cfg(test)]
mod tests {
    use checks::CheckState;

    use super::*;

    #[test]
    fn a_directory_takes_files_or_it_is_said_why_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path(), "").state, CheckState::Ok);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (path, part) in [(dir.path().join("none"), "is not there"), (file, "")] {
            let finding = look(&path, "do this");
            assert_ne!(finding.state, CheckState::Ok, "{path:?}");
            assert!(finding.text.contains(part), "{}", finding.text);
        }
        for (free, all, full) in
            [(0, 0, false), (1, 100, false), (0, 100, true), (9, 1000, true), (10, 1000, false)]
        {
            assert_eq!(is_full(free, all), full, "{free} of {all}");
        }
    }
}
