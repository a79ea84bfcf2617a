//! The engine: a listener, its workers and its sweeper.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::config::HttpConfig;
use super::core::Core;
use super::{poller, sweeper, worker};
use crate::http::service::router::Router;
use crate::http::sync;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How long workers may take to end when no connection is left.
const WORKERS_END_LIMIT: Duration = Duration::from_millis(300);

/// How many descriptors a slot may need for its connections to other servers.
const DESCRIPTORS_OF_A_SLOT: usize = 5;

/// How many descriptors the program needs beside its connections and slots.
const OTHER_DESCRIPTORS: usize = 32;

/// More stack than a worker needs.
const THREAD_STACK_BYTES: usize = 512 * 1024;

/// Starts a server; returns its address, and a function that waits for its end.
pub(crate) fn start(
    config: &HttpConfig,
    router: Router,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> io::Result<(SocketAddr, impl FnOnce() + Send + Sync + 'static)> {
    let (mut limits, reuse_port) = (config.limits.clone(), config.reuse_port);
    limits.connections = most_connections(limits.connections, router.slots());
    let listener = poller::bind(config.address, reuse_port, limits.send_time)?;
    let address = listener.local_addr()?;
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let workers = (cores, start_worker as fn(Arc<Core>) -> bool);
    let core = Core::new(
        router,
        &limits,
        config.tls.clone(),
        metrics,
        listener,
        workers,
    )?;
    if !core.workers.start_missing() {
        return Err(io::Error::other("no thread can be started"));
    }
    let (swept, shutdown) = (Arc::clone(&core), shutdown.clone());
    let sweep = move || sweep_until_the_end(&swept, &shutdown, reuse_port);
    let sweeper = new_thread("sweeper").spawn(sweep)?;
    log::info!(
        address = address.to_string().as_str(), slots = config.slots;
        "listening"
    );
    let join = move || {
        let _ = sweeper.join();
        let deadline = Instant::now() + WORKERS_END_LIMIT;
        while core.workers.live() > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if core.workers.live() > 0 {
            log::warn!("a worker is still busy; it ends with the program");
        }
    };
    Ok((address, join))
}

fn new_thread(name: &str) -> thread::Builder {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.stack_size(THREAD_STACK_BYTES)
}

fn start_worker(core: Arc<Core>) -> bool {
    let work = move || Arc::clone(&core.workers).work(move || worker::work(&core));
    let worker = new_thread("worker").spawn(work);
    if let Err(error) = &worker {
        log::error!(cause = error.to_string().as_str(); "cannot start a worker");
    }
    worker.is_ok()
}

fn sweep_until_the_end(core: &Core, shutdown: &Shutdown, reuse_port: bool) {
    while !shutdown.wait_at_most(sweeper::ROUND) {
        sweeper::sweep(core, sync::now(), None);
    }
    let began = Instant::now();
    if reuse_port {
        sweeper::hand_over(core);
        while began.elapsed() < sweeper::ON_THEIR_WAY {
            sweeper::sweep(core, sync::now(), None);
            thread::sleep(sweeper::ROUND);
        }
    }
    sweeper::drain(core);
    while sweeper::sweep(core, sync::now(), Some(began.elapsed())) {
        thread::sleep(sweeper::ROUND);
    }
    core.poller.end_all();
}

/// The most connections that leave enough descriptors for the slots.
fn most_connections(wanted: usize, slots: usize) -> usize {
    let own = OTHER_DESCRIPTORS + slots * DESCRIPTORS_OF_A_SLOT;
    let all = getrlimit(Resource::Nofile).current;
    let all = all.map_or(usize::MAX, |all| usize::try_from(all).unwrap_or(usize::MAX));
    let possible = all.saturating_sub(own).max(1);
    if possible < wanted {
        log::warn!(wanted, possible; "the limit of open files allows fewer connections");
    }
    possible.min(wanted)
}
