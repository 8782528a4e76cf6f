//! Real HTTP and DNS through a pod that the plugin captured: what reaches the proxy, where it goes on, and what passes by.
//!
//! Every test is one pod with the rules of one `ADD`, for one way of capture, one or both IP families and one backend.

mod dns;
mod exclusions;
mod includes;
mod scene;
mod through;

use envoy::Backend;
use envoy::bootstrap::Mode;
use testkit::Families;

/// One combination of the matrix.
#[derive(Debug, Clone, Copy)]
struct Combination {
    mode: Mode,
    families: Families,
    backend: Backend,
}

/// Makes a module of tests, one for each combination.
macro_rules! matrix {
    ($($name:ident: $mode:ident $families:ident $backend:ident;)*) => {$(
        mod $name {
            const WHAT: super::Combination = super::Combination {
                mode: super::Mode::$mode,
                families: super::Families::$families,
                backend: super::Backend::$backend,
            };

            #[test]
            fn http_goes_through_envoy() {
                super::through::check(WHAT);
            }

            #[test]
            fn what_is_excluded_passes_by() {
                super::exclusions::check(WHAT);
            }

            #[test]
            fn only_what_is_included_is_captured() {
                super::includes::check(WHAT);
            }

            #[test]
            fn dns_goes_to_the_proxy() {
                super::dns::check(WHAT);
            }
        }
    )*};
}

matrix! {
    redirect_v4_nftables: Redirect V4 Nftables;
    redirect_v4_iptables: Redirect V4 Iptables;
    redirect_v6_nftables: Redirect V6 Nftables;
    redirect_v6_iptables: Redirect V6 Iptables;
    redirect_dual_nftables: Redirect Dual Nftables;
    redirect_dual_iptables: Redirect Dual Iptables;
    tproxy_v4_nftables: Tproxy V4 Nftables;
    tproxy_v4_iptables: Tproxy V4 Iptables;
    tproxy_v6_nftables: Tproxy V6 Nftables;
    tproxy_v6_iptables: Tproxy V6 Iptables;
    tproxy_dual_nftables: Tproxy Dual Nftables;
    tproxy_dual_iptables: Tproxy Dual Iptables;
}
