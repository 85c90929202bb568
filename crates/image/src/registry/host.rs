//! Properties of a registry's host, by its name alone.

use std::net::IpAddr;

/// Whether a host, with a port or without, is this machine.
pub(super) fn is_loopback(registry: &str) -> bool {
    let host = match registry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((v6, _)) => v6,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised_in_every_spelling() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.9.9.9:5000",
            "[::1]:5000",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "localhost.example:5000",
            "10.0.0.1:5000",
            "[2001:db8::1]:5000",
            "ghcr.io",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
