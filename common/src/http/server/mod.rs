//! A listener with the bulkheads behind it, from its start to its end in good order.

#![cfg_attr(
    feature = "tiny_http",
    allow(dead_code, reason = "it serves in place of what is here")
)]

mod tls;

#[cfg(feature = "shuttle")]
pub(crate) mod fake;
#[cfg(not(feature = "shuttle"))]
mod poller;
mod table;
#[cfg(feature = "shuttle")]
use fake as poller;

mod budget;
mod transport;

mod answer;
mod core;
mod watch;
mod worker;

mod sweeper;

#[cfg(all(test, feature = "shuttle"))]
mod schedules;

#[cfg(all(test, not(any(feature = "shuttle", feature = "tiny_http"))))]
mod tests;

#[cfg(not(feature = "tiny_http"))]
mod engine;
#[cfg(feature = "tiny_http")]
mod tiny_http_engine;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use self::budget::network;
pub use self::core::Watched;
pub use self::poller::{Interest, Socket};
pub use self::tls::Tls;
pub use self::watch::watch;

#[cfg(not(feature = "tiny_http"))]
use self::engine::Engine;
#[cfg(feature = "tiny_http")]
use self::tiny_http_engine::Engine;
use super::service::limits::Limits;
use super::service::operations::{Dependencies, Dependency, Operations};
use super::service::router::{Router, Submit};
use crate::env::{ConfigError, Vars};
use crate::metrics::Metrics;
use crate::process::StartError;
use crate::shutdown::Shutdown;

/// Where a server listens, with how many slots, and what it puts up with.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Port 0 lets the system choose.
    pub address: SocketAddr,
    /// Whether another process may listen there too, to take over without a gap.
    pub reuse_port: bool,
    /// How many requests of one kind are worked on at the same time.
    pub workers: usize,
    /// What clients may do.
    pub limits: Limits,
    /// HTTPS instead of HTTP.
    pub tls: Option<Tls>,
    /// The names that clients may ask for in `Host`; any, where there are none.
    pub hosts: Vec<String>,
}

impl HttpConfig {
    /// From `LISTEN_ADDRESS`, the port that `port_key` names, and the optional `HTTP_…`
    /// variables.
    pub fn from_vars(vars: &Vars, port_key: &str, workers: usize) -> Result<Self, ConfigError> {
        let address: IpAddr = vars.parsed("LISTEN_ADDRESS", "an IP address such as 0.0.0.0")?;
        let expected = "a whole number from 1 to 1024";
        let workers: usize = vars.parsed_or("HTTP_WORKERS", expected, workers)?;
        if !(1..=1024).contains(&workers) {
            return Err(ConfigError::malformed("HTTP_WORKERS", expected));
        }
        Ok(Self {
            address: SocketAddr::new(address, vars.port(port_key)?),
            reuse_port: vars.parsed_or("HTTP_REUSE_PORT", "true or false", false)?,
            workers,
            limits: Limits::from_vars(vars)?,
            tls: Tls::from_vars(vars)?,
            hosts: hosts(vars)?,
        })
    }

    /// On a loopback port that the system chooses, for tests.
    #[must_use]
    pub fn on_loopback(workers: usize) -> Self {
        Self {
            address: ([127, 0, 0, 1], 0).into(),
            reuse_port: false,
            workers,
            limits: Limits::default(),
            tls: None,
            hosts: Vec::new(),
        }
    }
}

/// From `ALLOWED_HOSTS`, a list of names.
fn hosts(vars: &Vars) -> Result<Vec<String>, ConfigError> {
    const HOSTS: &str = "ALLOWED_HOSTS";
    let Some(list) = vars.guarding(HOSTS)? else {
        return Ok(Vec::new());
    };
    let names: Vec<_> = list.split(',').map(|name| name.trim().to_owned()).collect();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if names
        .iter()
        .all(|name| !name.is_empty() && name.bytes().all(plain))
    {
        Ok(names)
    } else {
        Err(ConfigError::malformed(
            HOSTS,
            "a list of names such as movies.example,gateway-vm",
        ))
    }
}

/// A running server.
pub struct Server {
    engine: Engine,
}

impl Server {
    /// Starts listening and working. `dependencies` makes, in a slot of its own, what
    /// `/ready` asks.
    pub fn start<D>(
        config: &HttpConfig,
        bulkheads: Vec<Arc<dyn Submit>>,
        dependencies: impl Fn() -> D + Send + Sync + 'static,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> Result<Self, StartError>
    where
        D: FnMut() -> Vec<Dependency> + Send + 'static,
    {
        let dependencies = move || Box::new(dependencies()) as Dependencies;
        let operations = Operations::new(metrics, &config.limits, dependencies);
        // It takes what no other does, so it is asked last.
        let bulkheads = bulkheads
            .into_iter()
            .chain([Arc::new(operations) as Arc<dyn Submit>]);
        let router = Router {
            bulkheads: bulkheads.collect(),
            hosts: config.hosts.clone(),
        };
        let engine = Engine::start(config, router, metrics, shutdown).map_err(|error| {
            StartError::System(
                format!("cannot listen on {}", config.address),
                with_advice(error, config.address.port()),
            )
        })?;
        Ok(Self { engine })
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.engine.address
    }

    /// Waits for the shutdown, then until every accepted request is answered.
    pub fn join(self) {
        self.engine.join();
        crate::log::flush();
    }
}

/// Of the likely causes, what to do about them.
fn with_advice(error: io::Error, port: u16) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("set another port, or stop who has it: ss -ltnp 'sport = :{port}'")
        }
        io::ErrorKind::AddrNotAvailable => {
            "LISTEN_ADDRESS must be an address of this machine, or 0.0.0.0".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "a port below 1024 is for root; set one above".to_owned()
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {advice}"))
}
