//! The rules as data. Each carries its reason, which a failing test prints.

/// Where a crate stands, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Computes values and never looks at the world. Uses only what is named.
    Pure {
        /// Our crates that it may use.
        ours: &'static [&'static str],
        /// Other people's crates that it may use directly.
        theirs: &'static [&'static str],
    },
    /// Owns exactly one outside thing. Uses only our crates that are named, and any other people's crates.
    Effect {
        /// Our crates that it may use.
        ours: &'static [&'static str],
    },
    /// Puts the crates of the layers above together. May use all of them.
    Composition,
    /// A program. May use every crate of the layers above.
    Program,
    /// Tests, tools for them, benchmarks, the demo. May use everything except a program's crate and compositions.
    Test,
}

/// The layer of each crate under `crates/`, from `ARCHITECTURE.md`. A new crate there needs a line here.
const CRATES: &[(&str, Layer)] = &[
    ("fault", Layer::Pure { ours: &[], theirs: &[] }),
    ("ruleset", Layer::Pure { ours: &[], theirs: &["ipnet", "thiserror"] }),
    ("conflicts", Layer::Pure { ours: &["ruleset"], theirs: &[] }),
    ("capture", Layer::Pure { ours: &["ruleset"], theirs: &["ipnet", "thiserror"] }),
    ("facts", Layer::Pure { ours: &["capture"], theirs: &["ipnet", "serde", "serde_json", "thiserror"] }),
    (
        "policy",
        Layer::Pure {
            ours: &["facts", "ruleset"],
            theirs: &["ipnet", "serde", "serde_json", "sha2", "thiserror"],
        },
    ),
    ("usage", Layer::Pure { ours: &["policy", "ruleset"], theirs: &["serde", "serde_json"] }),
    ("verification", Layer::Pure { ours: &[], theirs: &[] }),
    ("checks", Layer::Pure { ours: &[], theirs: &["serde"] }),
    ("intent", Layer::Pure { ours: &["capture"], theirs: &[] }),
    ("cni", Layer::Pure { ours: &["capture"], theirs: &["ipnet", "serde", "serde_json", "thiserror"] }),
    ("apitls", Layer::Effect { ours: &[] }),
    ("http1", Layer::Effect { ours: &[] }),
    ("netns", Layer::Effect { ours: &["fault", "rundir"] }),
    ("trusted", Layer::Effect { ours: &[] }),
    ("zds", Layer::Effect { ours: &[] }),
    ("kernel", Layer::Effect { ours: &["conflicts", "fault", "netns", "ruleset"] }),
    ("rundir", Layer::Effect { ours: &["conflicts", "facts", "trusted"] }),
    ("applied", Layer::Effect { ours: &["kernel", "netns", "rundir", "trusted"] }),
    (
        "podsource",
        Layer::Effect { ours: &["apitls", "capture", "facts", "fault", "http1", "rundir", "trusted"] },
    ),
    ("telemetry", Layer::Effect { ours: &["http1", "rundir"] }),
    ("audit", Layer::Effect { ours: &["rundir", "telemetry"] }),
    // The plugin, the installer and cnictl meet at the same mark.
    ("leftover", Layer::Effect { ours: &["cni"] }),
    ("install", Layer::Effect { ours: &["cni", "fault", "leftover", "rundir", "trusted"] }),
    // Looks at a node for the agent and for cnictl, and asks the API server as the plugin does.
    (
        "doctor",
        Layer::Effect {
            ours: &[
                "checks",
                "cni",
                "facts",
                "fault",
                "install",
                "kernel",
                "netns",
                "podsource",
                "rundir",
                "trusted",
            ],
        },
    ),
    // Manifests are read by podsource for the plugin and the agent alike.
    (
        "cluster",
        Layer::Effect { ours: &["apitls", "capture", "facts", "fault", "podsource", "rundir", "trusted"] },
    ),
    // The command line, its files and variables.
    ("options", Layer::Effect { ours: &["capture", "leftover"] }),
    ("serve", Layer::Effect { ours: &[] }),
    ("metrics", Layer::Effect { ours: &["rundir", "serve", "telemetry", "verification", "zds"] }),
    (
        "enforcement",
        Layer::Effect {
            ours: &[
                "cluster",
                "facts",
                "fault",
                "kernel",
                "netns",
                "options",
                "policy",
                "ruleset",
                "rundir",
                "telemetry",
                "usage",
            ],
        },
    ),
    ("agent", Layer::Composition),
];

/// The layer of a crate, from its name and the folder it is in; `None` when nobody has decided yet.
pub fn layer_of(name: &str, folder: &str) -> Option<Layer> {
    match folder {
        "bins" => Some(Layer::Program),
        "tests" => Some(Layer::Test),
        _ => CRATES.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer),
    }
}

/// Crates that no pure crate may reach, directly or through others.
pub const PURE_BANS: &[(&str, &str)] = &[
    ("rustix", "system calls: a pure crate never looks at the world; effect crates pass facts in"),
    ("libc", "system calls: a pure crate never looks at the world; effect crates pass facts in"),
    ("nix", "system calls: a pure crate never looks at the world; effect crates pass facts in"),
    ("tokio", "a pure crate waits for nothing"),
    ("ureq", "a pure crate talks to nobody; podsource fetches"),
    ("rustls", "a pure crate talks to nobody; podsource fetches"),
];

/// Programs that live as long as the node and wait for many things at once. Every other one that ships keeps to [`RUNTIME_BANS`].
pub const LONG_LIVED: &[&str] = &["install-cni"];

/// Crates that no short-lived program may reach: it waits for one thing at a time, and a runtime costs start-up and size.
pub const RUNTIME_BANS: &[(&str, &str)] = &[
    (
        "tokio",
        "the plugin runs once for each pod and waits for one thing at a time: a runtime costs start-up and size",
    ),
    ("async-std", "an async runtime, and unmaintained"),
    ("smol", "an async runtime: the plugin waits for one thing at a time"),
    ("async-executor", "an async runtime: the plugin waits for one thing at a time"),
    ("futures-executor", "an async runtime: the plugin waits for one thing at a time"),
    ("hyper", "needs an async runtime; podsource's client is blocking"),
    ("tracing", "telemetry's logger is enough, and has no global state"),
];

/// Crates that no program that we ship may reach.
pub const PROGRAM_BANS: &[(&str, &str)] = &[
    ("reqwest", "a second HTTP client: podsource has a blocking one, kube brings hyper's"),
    ("openssl", "needs a C library; TLS is rustls with ring"),
    ("openssl-sys", "needs a C library; TLS is rustls with ring"),
    ("native-tls", "is OpenSSL on Linux; TLS is rustls with ring"),
];

/// Build dependencies that mean C code is compiled or looked for on the machine.
pub const NATIVE_BUILD_TOOLS: &[&str] = &["cc", "cmake", "pkg-config", "bindgen", "vcpkg"];

/// Paths that no source of a pure crate may name, outside its tests.
pub const SOURCE_BANS: &[(&str, &str)] = &[
    ("std::process", "a pure crate runs no program and does not end its own"),
    ("std::fs", "a pure crate reads no file: whoever calls it passes the content in"),
    ("std::env", "a pure crate reads no environment: whoever calls it passes the variables in"),
    ("std::os", "a pure crate has no descriptors and no sockets"),
    ("std::thread", "a pure crate computes; threads belong to the programs and effect crates"),
    ("std::net::TcpStream", "a pure crate talks to nobody"),
    ("std::net::TcpListener", "a pure crate talks to nobody"),
    ("std::net::UdpSocket", "a pure crate talks to nobody"),
    ("std::net::ToSocketAddrs", "resolving a name asks the network"),
    ("std::time::SystemTime", "a pure crate gives the same result at any time: pass the moment in"),
    ("std::time::Instant", "a pure crate gives the same result at any time: pass the moment in"),
];
