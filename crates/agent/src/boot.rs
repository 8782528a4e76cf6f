//! Which start of the machine this is.

/// The kernel's number of this start of the machine, random(4). Namespaces do not outlive it, and their inode numbers come again.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Tells this start of the machine from all others; empty where the kernel does not say.
pub(crate) fn id() -> String {
    std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}
