//! The server's metrics, in Prometheus's text format, on a unix socket or a loopback port.
//!
//! Calls and their durations are counted when they end; the contents of the store are counted when
//! the metrics are read. Label values come from fixed sets (calls, codes, kinds), never from a
//! client's keys. `metrics_listener.rs` is the listener.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use vellum_service::containerd::snapshots as verbs;

/// Where metrics can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A port that is reachable only from this machine.
    Loopback(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        if let Some(path) = given.strip_prefix("unix:") {
            return match path {
                "" => Err("no path follows unix:".into()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        match given.parse::<SocketAddr>() {
            Ok(at) if at.ip().is_loopback() => Ok(Self::Loopback(at)),
            Ok(_) => Err(format!(
                "{given} can be reached from elsewhere, and readers are not authenticated: use 127.0.0.1:PORT, [::1]:PORT or unix:PATH"
            )),
            Err(_) => Err(format!("{given:?} is neither unix:PATH nor 127.0.0.1:PORT")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(at) => at.fmt(f),
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    call: &'static str,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    call: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    kind: &'static str,
}

/// All metrics. Counting is cheap, from any thread.
pub struct Metrics {
    registry: Registry,
    calls: Family<Ended, Counter>,
    took: Family<Call, Histogram, fn() -> Histogram>,
    adopted: Counter,
    swept: Counter,
    snapshots: Family<Of, Gauge>,
    bytes: Gauge<f64, AtomicU64>,
    inodes: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        // 100 us to 26 s.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 4.0, 10));
        let mut metrics = Self {
            registry: Registry::with_prefix("vellum_containerd"),
            calls: Family::default(),
            took: Family::new_with_constructor(histogram),
            adopted: Counter::default(),
            swept: Counter::default(),
            snapshots: Family::default(),
            bytes: Gauge::default(),
            inodes: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "calls",
            "Calls that ended, by gRPC code",
            metrics.calls.clone(),
        );
        registry.register_with_unit(
            "call_duration",
            "Time from a call's start to its answer",
            Unit::Seconds,
            metrics.took.clone(),
        );
        registry.register(
            "layers_adopted",
            "Layers that were already there and were not unpacked again",
            metrics.adopted.clone(),
        );
        registry.register(
            "gc_trees_deleted",
            "Trees of removed snapshots whose space came back",
            metrics.swept.clone(),
        );
        registry.register(
            "snapshots",
            "Snapshots in the store, by kind",
            metrics.snapshots.clone(),
        );
        registry.register_with_unit(
            "layers",
            "Space that committed layers take, as counted after their commit",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        registry.register(
            "layers_inodes",
            "Inodes that committed layers take",
            metrics.inodes.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// Counts a call that ended.
    pub fn ended(&self, call: &'static str, code: tonic::Code, took: Duration) {
        let code = format!("{code:?}");
        self.calls.get_or_create(&Ended { call, code }).inc();
        self.took
            .get_or_create(&Call { call })
            .observe(took.as_secs_f64());
    }

    /// Counts a layer that was not unpacked again.
    pub fn adopted(&self) {
        self.adopted.inc();
    }

    /// Counts deleted trees.
    pub fn swept(&self, trees: usize) {
        self.swept.inc_by(trees as u64);
    }

    /// Returns all metrics as text, with the given numbers for the store.
    pub(crate) fn text(&self, held: &[verbs::KindTotals]) -> Result<String, fmt::Error> {
        let mut sum = (0, 0);
        for one in held {
            let kind = one.kind.as_str();
            self.snapshots
                .get_or_create(&Of { kind })
                .set(one.count as i64);
            sum.0 += one.usage.bytes;
            sum.1 += one.usage.inodes;
        }
        self.bytes.set(sum.0 as f64);
        self.inodes.set(sum.1 as i64);
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_addresses_are_accepted() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("unix:/run/v"), Ok(Address::Unix("/run/v".into())));
        assert!(matches!(parse("127.0.0.1:9"), Ok(Address::Loopback(_))));
        assert!(matches!(parse("[::1]:9"), Ok(Address::Loopback(_))));
        assert!(parse("0.0.0.0:9").unwrap_err().contains("elsewhere"));
        assert!(parse("[::]:9").is_err());
        assert!(parse("unix:").is_err());
        assert!(parse("9090").is_err());
    }

    #[test]
    fn calls_are_counted_by_name_and_code() {
        let metrics = Metrics::default();
        metrics.ended("Stat", tonic::Code::NotFound, Duration::from_millis(1));
        let said = metrics.text(&[]).unwrap();
        let line = "vellum_containerd_calls_total{call=\"Stat\",code=\"NotFound\"} 1";
        assert!(said.contains(line), "{said}");
        assert!(
            said.contains("vellum_containerd_call_duration_seconds_bucket"),
            "{said}"
        );
    }
}
