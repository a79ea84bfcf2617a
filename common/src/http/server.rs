//! A listener with the halls behind it, from its start to its end in good order.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::edge::{self, Acceptor, Edge, EdgeLimits, Feed, Tls};
use super::hall::Hall;
use super::operations::{self, Dependency, OperationsKey, Readiness};
use crate::env::{ConfigError, Vars};
use crate::metrics::Metrics;
use crate::process::StartError;
use crate::shutdown::Shutdown;

/// How long connections may take to end after the shutdown was requested.
const DRAIN_LIMIT: Duration = Duration::from_millis(7500);

/// How long workers may take to end when no connection waits for them any more.
const WORKERS_END_LIMIT: Duration = Duration::from_millis(300);

/// The descriptors that a worker may take for what it asks: a socket, and what waits on it.
const DESCRIPTORS_OF_A_WORKER: usize = 5;

/// What else the program opens.
const OTHER_DESCRIPTORS: usize = 32;

/// Where a server listens, with how many workers, and what it puts up with.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Port 0 lets the system choose.
    pub address: SocketAddr,
    /// Whether another process may listen there too, to take over without a gap.
    pub reuse_port: bool,
    /// How many requests of one kind are worked on at the same time.
    pub workers: usize,
    /// What clients may do.
    pub limits: EdgeLimits,
    /// HTTPS instead of HTTP.
    pub tls: Option<Tls>,
    /// Who may see the metrics and the dependencies; without it, all.
    pub operations_key: Option<OperationsKey>,
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
            limits: EdgeLimits::from_vars(vars)?,
            tls: Tls::from_vars(vars)?,
            operations_key: OperationsKey::from_vars(vars)?,
        })
    }

    /// On a loopback port that the system chooses, for tests.
    #[must_use]
    pub fn on_loopback(workers: usize) -> Self {
        Self {
            address: ([127, 0, 0, 1], 0).into(),
            reuse_port: false,
            workers,
            limits: EdgeLimits::default(),
            tls: None,
            operations_key: None,
        }
    }
}

/// A running server.
pub struct Server {
    acceptor: Acceptor,
    feeds: Vec<Arc<Feed>>,
    shutdown: Shutdown,
}

impl Server {
    /// Starts listening and working. `dependencies` makes, at a place of its own, what
    /// `/ready` asks.
    pub fn start<D>(
        config: &HttpConfig,
        halls: Vec<Hall>,
        dependencies: impl Fn() -> D + Send + Sync + 'static,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> Result<Self, StartError>
    where
        D: FnMut() -> Vec<Dependency> + Send + 'static,
    {
        let key = config.operations_key.clone();
        let operations = Hall::new("", 1, operations::ROUTES, move || Readiness {
            key: key.clone(),
            dependencies: Box::new(dependencies()),
        });
        Self::try_start(config, halls, operations, metrics, shutdown).map_err(|error| {
            StartError::System(
                format!("cannot listen on {}", config.address),
                with_advice(error, config.address.port()),
            )
        })
    }

    fn try_start(
        config: &HttpConfig,
        halls: Vec<Hall>,
        operations: Hall,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> io::Result<Self> {
        let workers = halls.iter().map(|hall| hall.places).sum::<usize>() + operations.places;
        let limits = EdgeLimits {
            connections: most_connections(&config.limits, workers),
            ..config.limits.clone()
        };
        // The operations' hall takes what no other does, so it is asked last.
        let halls = halls.into_iter().chain([operations]);
        let halls: Vec<edge::Hall> = halls
            .map(|hall| hall.open(&limits))
            .collect::<io::Result<_>>()?;
        let feeds = halls.iter().map(|hall| Arc::clone(&hall.feed)).collect();
        let edge = Edge::new(
            limits,
            config.tls.clone(),
            config.operations_key.clone(),
            halls,
            metrics,
            shutdown,
        );
        let acceptor = Acceptor::start(config.address, config.reuse_port, edge)?;
        log::info!(
            address = acceptor.address.to_string().as_str(), workers = config.workers;
            "listening"
        );
        Ok(Self {
            acceptor,
            feeds,
            shutdown: shutdown.clone(),
        })
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.acceptor.address
    }

    /// Waits for the shutdown, then until every accepted request is answered.
    pub fn join(self) {
        self.shutdown.wait();
        self.acceptor.join(Instant::now() + DRAIN_LIMIT);
        let deadline = Instant::now() + WORKERS_END_LIMIT;
        for feed in self.feeds {
            feed.close(deadline);
        }
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

/// Clients must leave descriptors for the workers.
fn most_connections(limits: &EdgeLimits, workers: usize) -> usize {
    let own = OTHER_DESCRIPTORS + workers * DESCRIPTORS_OF_A_WORKER;
    let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let left = usize::try_from(all)
        .unwrap_or(usize::MAX)
        .saturating_sub(own)
        .max(1);
    if left < limits.connections {
        log::warn!(
            wanted = limits.connections, possible = left;
            "the limit of open files allows fewer connections"
        );
    }
    left.min(limits.connections)
}
