//! The server URL: scheme, host, port and path prefix. Whatever else a URL may have is refused.

/// Where the API server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// `https`.
    pub(crate) tls: bool,
    /// Name or address, an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path before `/api`, as management planes have it; without a slash at the end.
    pub(crate) prefix: String,
}

impl Url {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("it contains spaces, control or non-ASCII characters".into());
        }
        let (scheme, rest) = text.split_once("://").ok_or("it does not start with https://")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("its scheme is neither https nor http".into()),
        };
        if rest.contains(['?', '#', '@', '\\']) {
            return Err("it has user information, a query or a fragment".into());
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = split_port(authority)?;
        let port = match port {
            "" if tls => 443,
            "" => 80,
            digits => digits
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or("its port is not a number from 1 to 65535")?,
        };
        Ok(Self { tls, host: host.to_owned(), port, prefix: path.trim_end_matches('/').to_owned() })
    }

    /// Host and port as the `Host` header and messages have them.
    pub(crate) fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.prefix)
    }
}

fn split_port(authority: &str) -> Result<(&str, &str), String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("it has [ without ]")?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| "no IPv6 address stands in its brackets")?;
        (
            host,
            after.strip_prefix(':').or_else(|| after.is_empty().then_some("")).ok_or("text follows its ]")?,
        )
    } else {
        authority.split_once(':').unwrap_or((authority, ""))
    };
    if host.is_empty() {
        return Err("it has no host".into());
    }
    Ok((host, port))
}
