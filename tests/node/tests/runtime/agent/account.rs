//! The agent's service account, mounted as the kubelet does it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::apiserver::ApiServer;

/// A directory whose files are links into one that is replaced as a whole.
pub(super) struct Account {
    dir: PathBuf,
    rotations: AtomicUsize,
}

impl Account {
    pub(super) fn new(dir: PathBuf, api: &ApiServer) -> Self {
        fs::create_dir(&dir).expect("a directory");
        for name in ["ca.crt", "token", "namespace"] {
            symlink(Path::new("..data").join(name), dir.join(name)).expect("a link");
        }
        let account = Self { dir, rotations: AtomicUsize::new(0) };
        account.refresh(api);
        account
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new token, the only one that the server accepts from now on.
    pub(super) fn rotate(&self, api: &ApiServer) -> String {
        let token = format!("token-number-{}", self.rotations.load(Ordering::Relaxed));
        api.set_token(&token);
        self.refresh(api);
        token
    }

    fn refresh(&self, api: &ApiServer) {
        let number = self.rotations.fetch_add(1, Ordering::Relaxed);
        let (data, link) = (format!("..{number}"), self.dir.join("..data"));
        fs::create_dir(self.dir.join(&data)).expect("a directory");
        api.write_service_account(&self.dir.join(&data)).expect("a service account");
        let before = fs::read_link(&link).ok();
        symlink(&data, self.dir.join("..data_tmp")).expect("a link");
        fs::rename(self.dir.join("..data_tmp"), &link).expect("renamed");
        if let Some(before) = before {
            fs::remove_dir_all(self.dir.join(before)).expect("removed");
        }
    }
}
