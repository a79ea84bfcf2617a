//! A listener with the bulkheads behind it, from its start to its end in good order.

mod tls;

mod table;
#[cfg(not(feature = "shuttle"))]
mod poller;
#[cfg(feature = "shuttle")]
pub(crate) mod fake;
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

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

pub use self::budget::network;
pub use self::core::Watched;
pub use self::poller::{Interest, Socket};
pub use self::tls::Tls;
pub use self::watch::watch;

use self::core::Core;
use self::poller::{Listener, Poller};
use super::service::limits::Limits;
use super::service::operations::{Dependencies, Dependency, Operations};
use super::service::router::{Router, Submit};
use super::sync;
use crate::env::{ConfigError, Vars};
use crate::metrics::Metrics;
use crate::process::StartError;
use crate::shutdown::Shutdown;

/// How long workers may take to end when no connection is left.
const WORKERS_END_LIMIT: Duration = Duration::from_millis(300);

/// The descriptors that a slot may take for what it asks: a socket, and what waits on it.
const DESCRIPTORS_OF_A_SLOT: usize = 5;

/// What else the program opens.
const OTHER_DESCRIPTORS: usize = 32;

/// What a worker needs of its stack, with room to spare.
const THREAD_STACK_BYTES: usize = 512 * 1024;

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
        }
    }
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    core: Arc<Core>,
    sweeper: thread::JoinHandle<()>,
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
        let bulkheads = bulkheads.into_iter().chain([Arc::new(operations) as Arc<dyn Submit>]);
        let router = Router { bulkheads: bulkheads.collect() };
        Self::try_start(config, router, metrics, shutdown).map_err(|error| {
            StartError::System(
                format!("cannot listen on {}", config.address),
                with_advice(error, config.address.port()),
            )
        })
    }

    fn try_start(
        config: &HttpConfig,
        router: Router,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> io::Result<Self> {
        let limits = &config.limits;
        let listener = Listener::bind(config.address, config.reuse_port, limits.send_time)?;
        let address = listener.address()?;
        let slots = router.slots();
        let cores = thread::available_parallelism().map_or(2, usize::from);
        let core = Core::new(
            router,
            Limits { connections: most_connections(limits, slots), ..limits.clone() },
            config.tls.clone(),
            metrics,
            (Poller::new()?, listener),
            (cores, start_worker),
        );
        if !core.workers.start_missing() {
            return Err(io::Error::other("no thread can be started"));
        }
        let (swept, shutdown) = (Arc::clone(&core), shutdown.clone());
        let sweeper = thread::Builder::new()
            .name("sweeper".to_owned())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || sweep_until_the_end(&swept, &shutdown))?;
        log::info!(
            address = address.to_string().as_str(), workers = config.workers;
            "listening"
        );
        Ok(Self { address, core, sweeper })
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the shutdown, then until every accepted request is answered.
    pub fn join(self) {
        let _ = self.sweeper.join();
        let deadline = Instant::now() + WORKERS_END_LIMIT;
        while self.core.workers.live() > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if self.core.workers.live() > 0 {
            log::warn!("a worker is still busy; it ends with the program");
        }
        crate::log::flush();
    }
}

fn start_worker(core: Arc<Core>) -> bool {
    let worker = thread::Builder::new()
        .name("worker".to_owned())
        .stack_size(THREAD_STACK_BYTES)
        .spawn(move || Arc::clone(&core.workers).work(move || worker::work(&core)));
    if let Err(error) = &worker {
        log::error!(cause = error.to_string().as_str(); "cannot start a worker");
    }
    worker.is_ok()
}

fn sweep_until_the_end(core: &Core, shutdown: &Shutdown) {
    let mut began = None;
    loop {
        if began.is_none() && shutdown.wait_at_most(sweeper::ROUND) {
            began = Some(Instant::now());
            sweeper::drain(core);
        } else if began.is_some() {
            thread::sleep(sweeper::ROUND);
        }
        if !sweeper::sweep(core, sync::now(), began.map(|began| began.elapsed())) {
            core.poller.wake();
            return;
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

/// Clients must leave descriptors for the slots.
fn most_connections(limits: &Limits, slots: usize) -> usize {
    let own = OTHER_DESCRIPTORS + slots * DESCRIPTORS_OF_A_SLOT;
    let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let left = usize::try_from(all).unwrap_or(usize::MAX).saturating_sub(own).max(1);
    if left < limits.connections {
        log::warn!(
            wanted = limits.connections, possible = left;
            "the limit of open files allows fewer connections"
        );
    }
    left.min(limits.connections)
}
