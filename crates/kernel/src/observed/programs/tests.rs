//! A control group that only a process in it sees, with a program on connect(2).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::*;
use crate::observed::scan_processes;

/// `BPF_PROG_LOAD`, `BPF_PROG_ATTACH`; `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const LOAD: std::ffi::c_long = 5;
const ATTACH: std::ffi::c_long = 8;
const SOCK_ADDR: u32 = 18;

/// A group, and a process in it that sees nothing above it, in a network namespace of its own.
struct Group {
    path: PathBuf,
    process: Child,
}

impl Group {
    fn new() -> Self {
        let mount = MOUNTS.iter().rev().map(Path::new).find(|mount| mount.join("cgroup.procs").exists());
        let path = mount.unwrap().join(format!("kernel-test-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec unshare -n -m -C sh -c 'mount -t cgroup2 none /sys/fs/cgroup; exec sleep 60'",
            path.display()
        );
        let process = Command::new("sh").args(["-ec", &script]).spawn().unwrap();
        let group = Self { path, process };
        let began = std::time::Instant::now();
        while open_group(&group.view(), true).is_err() {
            assert!(began.elapsed().as_secs() < 10, "it does not start");
            std::thread::yield_now();
        }
        group
    }

    fn view(&self) -> PathBuf {
        format!("/proc/{}/root/sys/fs/cgroup", self.process.id()).into()
    }

    /// What a look through the processes finds, as it is seen from a container.
    fn processes(&self) -> PodProcesses {
        let mut found: HashMap<_, PodProcesses> = scan_processes(Path::new("/proc")).unwrap();
        let has_it = |of: &PodProcesses| of.pids().any(|pid| pid == self.process.id());
        let mut of = found.extract_if(|_, of| has_it(of)).next().unwrap().1;
        of.control_group =
            of.control_group.map(|path| Path::new("/../..").join(path.strip_prefix("/").unwrap()));
        of
    }

    /// A program that lets everything pass.
    #[allow(unsafe_code)]
    fn attach(&self) {
        unsafe extern "C" {
            fn syscall(number: std::ffi::c_long, ...) -> std::ffi::c_long;
        }
        const BPF: std::ffi::c_long = if cfg!(target_arch = "x86_64") { 321 } else { 280 };
        // r0 = 1; exit
        let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
        let licence = c"GPL";
        let mut load = [0u64; 16];
        load[0] = u64::from(SOCK_ADDR) | 2 << 32;
        (load[1], load[2]) = (code.as_ptr() as u64, licence.as_ptr() as u64);
        // `expected_attach_type` is at byte 68.
        load[8] = 10 << 32;
        // SAFETY: the structure is `union bpf_attr` of `BPF_PROG_LOAD` of that length, and what it points to lives through the call.
        let program = unsafe { syscall(BPF, LOAD, load.as_ptr(), size_of_val(&load)) };
        assert!(program >= 0, "{}", std::io::Error::last_os_error());
        let directory = File::open(&self.path).unwrap();
        let attach: [u32; 4] =
            [directory.as_raw_fd().cast_unsigned(), u32::try_from(program).unwrap(), 10, 0];
        // SAFETY: the same of `BPF_PROG_ATTACH`.
        let done = unsafe { syscall(BPF, ATTACH, attach.as_ptr(), size_of_val(&attach)) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[test]
fn programs_of_a_pods_group_are_found_from_a_container_that_does_not_see_it() {
    let group = Group::new();
    let processes = group.processes();
    let look = || of_control_groups(&processes, Path::new("/proc"));
    assert_eq!(look(), LookedAt::Found(Vec::new()));
    group.attach();
    let LookedAt::Found(found) = look() else { panic!("{:?}", look()) };
    assert_eq!(found.iter().map(|program| &*program.attached).collect::<Vec<_>>(), ["cgroup/connect4"]);
    // The root of all groups is nobody's.
    let everything = "/proc/self/root/sys/fs/cgroup";
    for mount in ["", "/unified"] {
        assert!(open_group(Path::new(&format!("{everything}{mount}")), true).is_err());
    }
}
