//! A server: a listener with bulkheads behind it, from its start to the end of its drain.

#![cfg_attr(
    feature = "tiny_http",
    allow(dead_code, reason = "it serves in place of what is here")
)]

mod tls;

mod config;

#[cfg_attr(feature = "shuttle", path = "fake.rs")]
pub(super) mod poller;
mod table;

mod budget;
mod transport;

mod peer;

mod evictable;

mod core;
mod watch;

mod accept;
mod answer;
mod worker;

mod sweeper;

#[cfg(all(test, feature = "shuttle"))]
mod schedules;

#[cfg(all(test, not(any(feature = "shuttle", feature = "tiny_http"))))]
mod tests;

#[cfg_attr(feature = "tiny_http", path = "tiny_http_engine.rs")]
mod engine;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

pub use self::config::HttpConfig;
pub use self::poller::{Interest, Socket, connect, wait_for};
pub use self::tls::Tls;
pub use self::watch::watch;

use super::service::operations::{Dependencies, Dependency, operations};
use super::service::router::{AnyBulkhead, Router};
use crate::metrics::Metrics;
use crate::process::{Running, StartError};
use crate::shutdown::Shutdown;

/// A running server.
pub struct Server {
    address: SocketAddr,
    join: Box<dyn FnOnce() + Send + Sync>,
}

impl Server {
    /// Starts to listen and to serve. `dependencies` makes, in a slot of its own, the function that `/ready`
    /// calls.
    pub fn start<D>(
        config: &HttpConfig,
        mut bulkheads: Vec<Arc<dyn AnyBulkhead>>,
        dependencies: impl Fn() -> D + Send + Sync + 'static,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> Result<Self, StartError>
    where
        D: FnMut() -> Vec<Dependency> + Send + 'static,
    {
        let dependencies = move || Box::new(dependencies()) as Dependencies;
        let key = config.operations_key.clone();
        // The empty prefix takes every path, and the first bulkhead that fits is taken, so these come last.
        bulkheads.extend(operations(metrics, &config.limits, key, dependencies));
        let router = Router {
            bulkheads,
            hosts: config.hosts.clone(),
        };
        let started = engine::start(config, router, metrics, shutdown);
        let (address, join) = started.map_err(|error| {
            StartError::System(
                format!("cannot listen on {}", config.address),
                with_advice(error, config.address.port()),
            )
        })?;
        Ok(Self {
            address,
            join: Box::new(join),
        })
    }

    /// The address on which it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server, with something that has to end after the last answer.
    #[must_use]
    pub fn with_end(self, end: impl FnOnce() + Send + Sync + 'static) -> Self {
        let Self { address, join } = self;
        let join = Box::new(|| {
            join();
            end();
        });
        Self { address, join }
    }

    /// Waits for the shutdown, then until every accepted request is answered or its time has passed.
    pub fn join(self) {
        (self.join)();
        crate::log::flush();
    }
}

impl Running for Server {
    fn join(self) {
        Self::join(self);
    }
}

/// Adds what to do about a likely cause.
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
