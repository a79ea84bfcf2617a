//! Orders: `consumer` takes them from the queue, `settle` decides what becomes of each, `store`
//! holds the SQL, `api` reads them out over HTTP. Two programs, so that one can stop without the
//! other; a third, `dead_letter_tool`, is for what could never be recorded.

mod config;
mod dead_letter;
mod order;

mod api;
mod consumer;
mod health;
mod ledger;
mod message;
mod message_report;
mod settle;
mod store;

pub mod dead_letter_tool;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::db::Database;
use common::http::{Bulkhead, Dependency, Server};
use common::metrics::Metrics;
use common::process::{Running, StartError};
use common::shutdown::Shutdown;

use common::metrics::IntGauge;
use crossbeam_channel::{Receiver, RecvTimeoutError};

pub use config::{ApiConfig, ConsumerConfig};
use health::Health;
pub use store::MIGRATIONS;
use store::{DeadLetterStore, Filter, OrderStore};

/// How often dead letters are counted for the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// How long the consumer may take to end. Whatever is frozen, what it has not acknowledged is
/// delivered again.
const CONSUMER_END_LIMIT: Duration = Duration::from_secs(6);

/// The running `billing-api`.
pub struct BillingApi {
    server: Server,
    bring_up: JoinHandle<()>,
}

/// Starts `billing-api`: what its `main` and the tests call alike.
pub fn start_api(config: &ApiConfig, shutdown: &Shutdown) -> Result<BillingApi, StartError> {
    let metrics = Metrics::new();
    let database = Database::new(&config.database, MIGRATIONS);
    database.show_in(&metrics);
    let no_thread = |error| StartError::System("cannot start a thread".to_owned(), error);
    let bring_up = OrderStore::new(&database).connection().bring_up(shutdown);
    let bring_up = bring_up.map_err(no_thread)?;
    count_dead_letters(&database, &metrics, shutdown).map_err(no_thread)?;
    let limits = &config.http.limits;
    let orders = {
        let database = Arc::clone(&database);
        Bulkhead::new(
            "/api/orders",
            config.http.workers,
            api::ROUTES,
            limits,
            move || OrderStore::new(&database),
        )
    };
    let dead_letters = {
        let database = Arc::clone(&database);
        Bulkhead::new(
            "/api/dead-letters",
            1,
            api::DEAD_LETTERS,
            limits,
            move || DeadLetterStore::new(&database),
        )
    };
    let health = Bulkhead::new("/api/health", 1, api::HEALTH, limits, || ());
    let dependencies = move || {
        let mut orders = OrderStore::new(&database);
        move || {
            vec![Dependency {
                name: "postgresql",
                state: orders.is_up().into(),
            }]
        }
    };
    let server = Server::start(
        &config.http,
        vec![
            Arc::new(orders.with_guard(api::knows_query)),
            Arc::new(dead_letters.with_guard(api::knows_query)),
            Arc::new(health),
        ],
        dependencies,
        &metrics,
        shutdown,
    )?;
    Ok(BillingApi { server, bring_up })
}

/// Shows how many dead letters there are, until the shutdown. While PostgreSQL is away the gauges
/// keep what was counted last.
fn count_dead_letters(
    database: &Arc<Database>,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> io::Result<()> {
    let (mut letters, shutdown) = (DeadLetterStore::new(database), shutdown.clone());
    let help = "Dead letters, counted up to 100000.";
    let count: IntGauge = metrics.gauge("dead_letters", help);
    let help = "What the table of dead letters takes on disk.";
    let bytes: IntGauge = metrics.gauge("dead_letters_bytes", help);
    thread::Builder::new()
        .name("dead-letters".to_owned())
        .spawn(move || {
            loop {
                if let Ok(counts) = letters.counts(&Filter::default()) {
                    count.set(counts.count);
                    bytes.set(counts.bytes);
                }
                if shutdown.wait_at_most(COUNT_EVERY) {
                    return;
                }
            }
        })?;
    Ok(())
}

impl BillingApi {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

impl Running for BillingApi {
    fn join(self) {
        self.server.join();
        let _ = self.bring_up.join();
    }
}

/// The running `billing-consumer`.
pub struct BillingConsumer {
    server: Server,
    /// Closes when the consumer has ended.
    consumer: Receiver<()>,
}

/// Starts `billing-consumer`: what its `main` and the tests call alike.
pub fn start_consumer(
    config: &ConsumerConfig,
    shutdown: &Shutdown,
) -> Result<BillingConsumer, StartError> {
    let metrics = Metrics::new();
    let health = Health::new(&metrics);
    let dependencies = {
        let health = health.clone();
        move || {
            let health = health.clone();
            move || health.dependencies()
        }
    };
    let server = Server::start(&config.http, Vec::new(), dependencies, &metrics, shutdown)?;
    health
        .tell_of_slow_tries(shutdown)
        .map_err(|error| StartError::System("cannot start a thread".to_owned(), error))?;
    let consumer = consumer::start(config, &metrics, health, shutdown)?;
    Ok(BillingConsumer { server, consumer })
}

impl BillingConsumer {
    /// Where it answers `/health`, `/ready` and `/metrics`.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

impl Running for BillingConsumer {
    fn join(self) {
        self.server.join();
        if self.consumer.recv_timeout(CONSUMER_END_LIMIT) == Err(RecvTimeoutError::Timeout) {
            log::warn!("a server does not answer; what is not acknowledged is delivered again");
        }
    }
}
