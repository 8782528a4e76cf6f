//! Which pod a process belongs to, from the names of its cgroups.
//!
//! Kubelet, the runtimes and the two drivers (cgroupfs, systemd) write the uid of a pod and the id of a container in about a dozen ways;
//! all of them have a word `pod` and the uid, then anything, then the container's id as the last word.

/// The uid of a pod has 32 hexadecimal digits in these groups (RFC 9562, section 4). Kubelet calls a static pod by an MD5 hash instead, which
/// is as long and has no hyphens.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

/// What one path says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named<'a> {
    /// In the form with hyphens, unless it is a hash; empty where CRI-O leaves it out.
    uid: String,
    container: &'a str,
}

/// What kubelet calls the pod: its uid with hyphens, or the hash of a static pod without. Nothing if the process belongs to no pod, or if its
/// cgroups contradict each other.
pub(super) fn pod_name(file: &str) -> Option<String> {
    named(file).map(|named| named.uid).filter(|uid| !uid.is_empty())
}

/// The container's id, by the same rules.
pub(super) fn container(file: &str) -> Option<&str> {
    named(file).map(|named| named.container)
}

fn named(file: &str) -> Option<Named<'_>> {
    let mut first: Option<Named<'_>> = None;
    for line in file.lines() {
        // hierarchy:controllers:path (cgroups(7)); a path may have colons.
        let path = line.splitn(3, ':').nth(2)?;
        let Some(named) = path_names(path) else { continue };
        match &first {
            None => first = Some(named),
            Some(known) if *known == named => {}
            // Multiple containers, or one container of two pods.
            Some(_) => return None,
        }
    }
    first
}

fn path_names(path: &str) -> Option<Named<'_>> {
    let path = path.strip_suffix(".scope").unwrap_or(path);
    match (with_uid(path), crio_without_uid(path)) {
        (Some(named), None) | (None, Some(named)) => Some(named),
        // Ambiguous, or neither.
        _ => None,
    }
}

/// Anything that is no letter, digit or beyond ASCII separates words.
fn is_separator(byte: u8) -> bool {
    byte.is_ascii_punctuation()
}

/// `<separator>pod<uid><separator>…<separator><container>`, the first place where that holds.
fn with_uid(path: &str) -> Option<Named<'_>> {
    let bytes = path.as_bytes();
    let mut from = 0;
    while let Some(at) = path.get(from..)?.find("pod").map(|at| at + from) {
        from = at + 1;
        if at == 0 || !is_separator(bytes[at - 1]) {
            continue;
        }
        let Some((uid, end)) = uid_at(bytes, at + 3) else { continue };
        let Some(rest) = path.get(end..).filter(|rest| rest.bytes().next().is_some_and(is_separator)) else {
            continue;
        };
        let start = rest.bytes().rposition(is_separator).map_or(0, |last| last + 1);
        let container = &rest[start..];
        if !container.is_empty() {
            return Some(Named { uid, container });
        }
    }
    None
}

/// A uid that begins here, and where it ends. Between its groups there may be a separator each; without any it is a hash.
fn uid_at(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut uid = String::with_capacity(36);
    let mut separated = false;
    for (number, group) in GROUPS.into_iter().enumerate() {
        if number > 0 {
            if bytes.get(at).copied().is_some_and(is_separator) {
                separated = true;
                at += 1;
            }
            uid.push('-');
        }
        let digits = bytes.get(at..at + group)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        uid.extend(digits.iter().map(|digit| char::from(*digit)));
        at += group;
    }
    if !separated {
        uid.retain(|c| c != '-');
    }
    Some((uid, at))
}

/// `…/crio-<container>`, as CRI-O names it within a cgroup namespace: the pod is not said.
fn crio_without_uid(path: &str) -> Option<Named<'_>> {
    let last = path.rsplit('/').next()?;
    if with_uid(path).is_some() {
        return None;
    }
    let rest = last.strip_prefix("crio")?;
    let container = rest.strip_prefix(|c: char| c.is_ascii_punctuation())?;
    let plain = !container.is_empty() && !container.bytes().any(is_separator);
    plain.then(|| Named { uid: String::new(), container })
}

#[cfg(test)]
mod tests {
    use super::pod_name;

    const UID: &str = "2fee88c2-2a0b-4c0d-b3a1-1a1f1e5e6f7a";
    const UNDER: &str = "2fee88c2_2a0b_4c0d_b3a1_1a1f1e5e6f7a";
    const CID: &str = "9ee1c1f3b0d4f8e4c8a6f9a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f80";

    fn of(path: &str) -> Option<String> {
        pod_name(&format!("0::{path}\n"))
    }

    #[test]
    fn every_way_in_which_a_cgroup_names_a_pod() {
        for path in [
            format!("/kubepods/burstable/pod{UID}/{CID}"),
            format!("/kubepods/pod{UID}/{CID}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice/docker-{CID}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{UNDER}.slice/cri-containerd-{CID}.scope"),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDER}.slice/crio-{CID}.scope"
            ),
            format!("/kubepods-besteffort-pod{UNDER}.slice:cri-containerd:{CID}"),
            format!("/../../pod{UID}/{CID}"),
            format!(
                "/docker/93529524695bb00d91c1f6dba692ea8d3550c3b94fb2463af7bc9ec82f992d26/kubepods/besteffort/pod{UID}/{CID}"
            ),
            format!(
                "/system.slice/docker-93529524695bb00d91c1f6dba692ea8d3550c3b94fb2463af7bc9ec82f992d26.scope/kubelet/kubepods/besteffort/pod{UID}/{CID}"
            ),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDER}.slice/cri-containerd-{CID}.scope"
            ),
        ] {
            assert_eq!(of(&path).as_deref(), Some(UID), "{path}");
        }
        let without_hyphens = UID.replace('-', "");
        assert_eq!(of(&format!("/kubepods/pod{without_hyphens}/{CID}")), Some(without_hyphens));
    }

    /// A static pod's cgroup has the hash of its manifest, with either driver of cgroups.
    #[test]
    fn a_hash_is_not_made_a_uid() {
        let hash = "5f4dcc3b5aa765d61d8327deb882cf99";
        for path in [
            format!("/kubepods/burstable/pod{hash}/{CID}"),
            format!("/kubepods.slice/kubepods-burstable-pod{hash}.slice/cri-containerd-{CID}.scope"),
        ] {
            assert_eq!(of(&path).as_deref(), Some(hash), "{path}");
        }
        assert_eq!(of(&format!("/kubepods/pod{}/{CID}", &hash[1..])), None);
    }

    #[test]
    fn cgroups_that_name_no_pod() {
        for path in [
            "/".to_owned(),
            "/user.slice".to_owned(),
            "/init.scope".to_owned(),
            format!("/kubepods/pod{UID}"),
            format!("/kubepods/pod{UID}/"),
            format!("/../crio-{CID}.scope"),
            format!("/kubepods/burstable/pod{}/{CID}", &UID[1..]),
            format!("/kubepods/burstable/pod{}g/{CID}", &UID[1..]),
            format!("/kubepods/burstable/xpod{UID}/{CID}"),
            format!("/kubepods/burstable/pod{UID}{CID}"),
        ] {
            assert_eq!(of(&path), None, "{path}");
        }
        assert_eq!(pod_name(""), None);
        assert_eq!(pod_name("no colons"), None);
        assert_eq!(pod_name(&format!("1:cpu:/kubepods/pod{UID}/{CID}\nbroken line\n")), None);
    }

    #[test]
    fn lines_of_one_process_must_name_one_pod() {
        let line = |number: u32, uid: &str, container: &str| {
            format!("{number}:cpu:/kubepods/pod{uid}/{container}\n")
        };
        let other_uid = UID.replace('2', "3");
        let other = CID.replace('9', "8");
        let good =
            line(12, UID, CID) + "11:rdma:/\n" + &line(10, UID, CID) + "0::/system.slice/kubelet.service\n";
        assert_eq!(pod_name(&good).as_deref(), Some(UID));
        assert_eq!(pod_name(&(line(2, UID, CID) + &line(1, UID, &other))), None, "multiple container ids");
        assert_eq!(pod_name(&(line(2, UID, CID) + &line(1, &other_uid, CID))), None, "multiple uids");
    }

    #[test]
    fn anything_may_stand_there() {
        let mut state = 7_u32;
        for _ in 0..20_000 {
            let mut text =
                format!("3:a:/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{CID}.scope").into_bytes();
            for _ in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = state as usize % text.len();
                text[at] = (state >> 20) as u8;
            }
            let _ = pod_name(&String::from_utf8_lossy(&text));
        }
    }
}
