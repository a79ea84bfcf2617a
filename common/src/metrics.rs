//! The metrics of `/metrics`. Each service has a registry of its own, so that several can run in one process, as
//! they do in the tests.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, Opts, Registry, TextEncoder};

pub use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::usage;

/// The metrics of one service.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    pub(crate) http_requests: IntCounterVec,
    pub(crate) http_seconds: HistogramVec,
    pub(crate) connections: IntGauge,
    pub(crate) refused_connections: IntCounter,
    pub(crate) refused_requests: IntCounterVec,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with the metrics of the HTTP server.
    ///
    /// # Panics
    /// Never: the names are constants, and each is registered once.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let requests = Opts::new("http_requests_total", "Requests answered.");
        let seconds = HistogramOpts::new(
            "http_request_duration_seconds",
            "Time from the arrival of the complete request to the end of its answer.",
        );
        let connections = Opts::new("http_connections", "Connections that are open.");
        let refused_connections = Opts::new(
            "http_connections_refused_total",
            "Connections that were closed at a limit of connections.",
        );
        let refused_requests = Opts::new(
            "http_requests_refused_total",
            "Requests that were malformed, too large or too slow, by status.",
        );
        let metrics = Self {
            http_requests: IntCounterVec::new(requests, &["route", "method", "status"])
                .expect(CONSTANT_NAMES),
            http_seconds: HistogramVec::new(seconds.buckets(SECONDS.to_vec()), &["route"])
                .expect(CONSTANT_NAMES),
            connections: IntGauge::with_opts(connections).expect(CONSTANT_NAMES),
            refused_connections: IntCounter::with_opts(refused_connections).expect(CONSTANT_NAMES),
            refused_requests: IntCounterVec::new(refused_requests, &["status"])
                .expect(CONSTANT_NAMES),
            registry,
        };
        metrics.register(metrics.http_requests.clone());
        metrics.register(metrics.http_seconds.clone());
        metrics.register(metrics.connections.clone());
        metrics.register(metrics.refused_connections.clone());
        metrics.register(metrics.refused_requests.clone());
        metrics
    }

    fn register(&self, metric: impl Collector + 'static) {
        self.registry
            .register(Box::new(metric))
            .expect(CONSTANT_NAMES);
    }

    /// A counter of this service.
    ///
    /// # Panics
    /// If `name` is not valid or exists already, which is a defect of the program that shows at its start.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        let counter = IntCounter::new(name, help).expect(CONSTANT_NAMES);
        self.register(counter.clone());
        counter
    }

    /// A counter with one label, `label`.
    ///
    /// # Panics
    /// If `name` is not valid or exists already.
    #[must_use]
    pub fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label]).expect(CONSTANT_NAMES);
        self.register(counters.clone());
        counters
    }

    /// A value that goes up and down.
    ///
    /// # Panics
    /// If `name` is not valid or exists already.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        let gauge = IntGauge::new(name, help).expect(CONSTANT_NAMES);
        self.register(gauge.clone());
        gauge
    }

    /// A value that is computed whenever metrics are collected.
    ///
    /// # Panics
    /// If `name` is not valid or exists already.
    pub fn computed_gauge(
        &self,
        name: &str,
        help: &str,
        value: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let gauge = IntGauge::new(name, help).expect(CONSTANT_NAMES);
        self.register(Computed { gauge, value });
    }

    /// Values that go up and down, with one label, `label`. A value that is removed is not shown.
    ///
    /// # Panics
    /// If `name` is not valid or exists already.
    #[must_use]
    pub fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &[label]).expect(CONSTANT_NAMES);
        self.register(gauges.clone());
        gauges
    }

    /// A distribution of durations in seconds.
    ///
    /// # Panics
    /// If `name` is not valid or exists already.
    #[must_use]
    pub fn seconds(&self, name: &str, help: &str) -> Histogram {
        self.histogram(name, help, &SECONDS)
    }

    /// A distribution of sizes of batches.
    ///
    /// # Panics
    /// If `name` is not valid or exists already.
    #[must_use]
    pub fn sizes(&self, name: &str, help: &str) -> Histogram {
        self.histogram(name, help, &SIZES)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histogram = Histogram::with_opts(options).expect(CONSTANT_NAMES);
        self.register(histogram.clone());
        histogram
    }

    /// All metrics, and the standard `process_*` metrics, in the Prometheus text format, version 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        let own = TextEncoder::new().encode_to_string(&self.registry.gather());
        own.unwrap_or_default() + &usage::text()
    }
}

/// A gauge whose value is computed when it is collected.
struct Computed<V> {
    gauge: IntGauge,
    value: V,
}

impl<V: Fn() -> u64 + Send + Sync> Collector for Computed<V> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge
            .set((self.value)().try_into().unwrap_or(i64::MAX));
        self.gauge.collect()
    }
}

const CONSTANT_NAMES: &str = "metric names are constants, each used once in a service";

/// The buckets of durations, from a movie in the cache to a time limit.
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The buckets of sizes, from one to the largest batch.
const SIZES: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
