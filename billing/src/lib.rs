//! Orders: `consumer` takes them from the queue, `settle` decides what becomes of each, `store` has the SQL, `api`
//! answers requests for them. `billing-consumer` and `billing-api` are two programs, so that one can stop without
//! the other; `dead_letter_tool` is a third, for messages that could not be recorded.

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
mod unacknowledged;

pub mod dead_letter_tool;

use std::sync::Arc;
use std::time::Duration;

use common::db::Database;
use common::http::{Bulkhead, Dependency, Server};
use common::metrics::Metrics;
use common::process::{self, StartError};
use common::shutdown::Shutdown;
use crossbeam_channel::RecvTimeoutError;

pub use config::{ApiConfig, ConsumerConfig};
use health::Health;
pub use store::MIGRATIONS;
use store::{DeadLetterStore, Filter, OrderStore};

/// How often dead letters are counted for the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// How long the consumer may take to end. If a server does not answer by then, the broker delivers the
/// unacknowledged messages again.
const CONSUMER_END_LIMIT: Duration = Duration::from_secs(6);

/// The running `billing-api`.
pub type BillingApi = Server;

/// Starts `billing-api`; its `main` and the tests call this function.
pub fn start_api(config: &ApiConfig, shutdown: &Shutdown) -> Result<BillingApi, StartError> {
    let metrics = Metrics::new();
    let database = Database::new(&config.database, MIGRATIONS);
    database.show_in(&metrics);
    database.connection().bring_up(shutdown)?;
    count_dead_letters(&database, &metrics, shutdown)?;
    let (slots, limits) = (config.http.slots, &config.http.limits);
    let stores = database.for_each_slot(OrderStore::new);
    let orders = Bulkhead::new("/api/orders", slots, api::ROUTES, limits, stores);
    let stores = database.for_each_slot(DeadLetterStore::new);
    let dead_letters = Bulkhead::new("/api/dead-letters", 1, api::DEAD_LETTERS, limits, stores);
    let health = Bulkhead::new("/api/health", 1, api::HEALTH, limits, || ());
    let dependencies = move || {
        let mut connection = database.connection();
        move || vec![Dependency::new("postgresql", connection.is_up())]
    };
    let server = Server::start(
        &config.http,
        vec![
            Arc::new(orders.with_guard(api::check_query)),
            Arc::new(dead_letters.with_guard(api::check_query)),
            Arc::new(health),
        ],
        dependencies,
        &metrics,
        shutdown,
    )?;
    Ok(server)
}

/// Counts the dead letters for the metrics, until the shutdown. While PostgreSQL is unavailable the gauges keep the
/// last count.
fn count_dead_letters(
    database: &Arc<Database>,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> Result<(), StartError> {
    let (mut letters, shutdown) = (DeadLetterStore::new(database), shutdown.clone());
    let count = metrics.gauge("dead_letters", "Dead letters, counted up to 100000.");
    let bytes = metrics.gauge(
        "dead_letters_bytes",
        "What the table of dead letters takes on disk.",
    );
    process::spawn("dead-letters", move || {
        loop {
            if let Ok(counts) = letters.counts(&Filter::default()) {
                count.set(counts.count);
                bytes.set(counts.bytes);
            }
            if shutdown.wait_at_most(COUNT_EVERY) {
                return;
            }
        }
    })
    .map(drop)
}

/// The running `billing-consumer`.
pub type BillingConsumer = Server;

/// Starts `billing-consumer`; its `main` and the tests call this function.
pub fn start_consumer(
    config: &ConsumerConfig,
    shutdown: &Shutdown,
) -> Result<BillingConsumer, StartError> {
    let metrics = Metrics::new();
    let health = Health::new(&metrics);
    let shown = health.clone();
    let dependencies = move || {
        let health = shown.clone();
        move || health.dependencies()
    };
    let server = Server::start(&config.http, Vec::new(), dependencies, &metrics, shutdown)?;
    health.log_slow_tries(shutdown)?;
    let ended = consumer::start(config, &metrics, health, shutdown)?;
    Ok(server.with_end(move || {
        if ended.recv_timeout(CONSUMER_END_LIMIT) == Err(RecvTimeoutError::Timeout) {
            log::warn!(
                "PostgreSQL or RabbitMQ does not answer; unacknowledged messages are delivered again"
            );
        }
    }))
}
