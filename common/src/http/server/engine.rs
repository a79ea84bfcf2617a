//! The engine: a listener, its workers and its sweeper.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::config::HttpConfig;
use super::core::Core;
use super::poller::{Listener, Poller};
use super::{sweeper, worker};
use crate::http::limits::Limits;
use crate::http::service::router::Router;
use crate::http::sync;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How long workers may take to end when no connection is left.
const WORKERS_END_LIMIT: Duration = Duration::from_millis(300);

/// The descriptors that a slot may take for what it asks: a socket, and what waits on it.
const DESCRIPTORS_OF_A_SLOT: usize = 5;

/// What else the program opens.
const OTHER_DESCRIPTORS: usize = 32;

/// What a worker needs of its stack, with room to spare.
const THREAD_STACK_BYTES: usize = 512 * 1024;

pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    core: Arc<Core>,
    sweeper: thread::JoinHandle<()>,
}

impl Engine {
    pub(crate) fn start(
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
            &Limits {
                connections: most_connections(limits, slots),
                ..limits.clone()
            },
            config.tls.clone(),
            metrics,
            (Poller::new()?, listener),
            (cores, start_worker),
        );
        if !core.workers.start_missing() {
            return Err(io::Error::other("no thread can be started"));
        }
        let (swept, shutdown) = (Arc::clone(&core), shutdown.clone());
        let reuse_port = config.reuse_port;
        let sweeper = thread::Builder::new()
            .name("sweeper".to_owned())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || sweep_until_the_end(&swept, &shutdown, reuse_port))?;
        log::info!(
            address = address.to_string().as_str(), workers = config.workers;
            "listening"
        );
        Ok(Self {
            address,
            core,
            sweeper,
        })
    }

    pub(crate) fn join(self) {
        let _ = self.sweeper.join();
        let deadline = Instant::now() + WORKERS_END_LIMIT;
        while self.core.workers.live() > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if self.core.workers.live() > 0 {
            log::warn!("a worker is still busy; it ends with the program");
        }
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

fn sweep_until_the_end(core: &Core, shutdown: &Shutdown, reuse_port: bool) {
    let mut began = None;
    loop {
        if began.is_none() && shutdown.wait_at_most(sweeper::ROUND) {
            if reuse_port {
                sweeper::hand_over(core);
            }
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

/// Clients must leave descriptors for the slots.
fn most_connections(limits: &Limits, slots: usize) -> usize {
    let own = OTHER_DESCRIPTORS + slots * DESCRIPTORS_OF_A_SLOT;
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
